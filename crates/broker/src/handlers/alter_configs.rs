//! AlterConfigs (33), versions 0-2.
//!
//! Replaces all configs of a topic, of this broker, or of all brokers (the empty name): what the request does
//! not name goes back to its default. Deprecated in Kafka for that, and still sent by older tools.

use std::sync::Arc;

use kafka_wire::alter_configs_request::AlterConfigsResource;
use kafka_wire::alter_configs_response::AlterConfigsResourceResponse;
use kafka_wire::{AlterConfigsRequest, AlterConfigsResponse};

use crate::admin_change::{Outcome, carry_out, patience};
use crate::broker::{Broker, RequestContext};
use crate::config_change::{KeyEdit, ResourceEdit, Rules, decide};

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: AlterConfigsRequest,
) -> AlterConfigsResponse {
    let decisions = {
        let edits: Vec<_> = request.resources.iter().map(edit).collect();
        with_rules(broker, |rules| decide(&edits, rules))
    };
    // The request has no timeout field.
    let outcomes = carry_out(&broker.log, ctx, decisions, request.validate_only, patience(0)).await;
    respond(request.resources, outcomes)
}

/// Calls `decide` with the rules as this broker has them now.
pub(crate) fn with_rules<T>(broker: &Broker, decide: impl FnOnce(&Rules<'_>) -> T) -> T {
    let manifest = broker.log.manifest();
    let node_id = broker.log.node_id();
    decide(&Rules {
        topics: &manifest.topics,
        broker_configs: &manifest.broker_configs,
        node_id,
        check_topic: &|key, value| broker.config.check_topic_config(key, value),
        check_broker: &|key, value| broker.config.check_broker_config(key, value),
        is_fixed: &crate::config::Config::is_fixed_at_creation,
        describe_topic: &|name| broker.config.describe_topic(&manifest, name),
        describe_broker: &|| broker.config.describe_broker(&manifest, Some(node_id)),
    })
}

fn edit(resource: &AlterConfigsResource) -> ResourceEdit<'_> {
    ResourceEdit {
        kind: resource.resource_type,
        name: &resource.resource_name,
        replace: true,
        keys: resource
            .configs
            .iter()
            .map(|c| KeyEdit::set(&c.name, c.value.as_deref()))
            .collect(),
    }
}

fn respond(resources: Vec<AlterConfigsResource>, outcomes: Vec<Outcome>) -> AlterConfigsResponse {
    let mut response = AlterConfigsResponse::default();
    for (resource, outcome) in resources.into_iter().zip(outcomes) {
        let mut result = AlterConfigsResourceResponse::default();
        result.resource_type = resource.resource_type;
        result.resource_name = resource.resource_name;
        result.error_message = None;
        if let Err(refusal) = outcome {
            result.error_code = refusal.code.code();
            result.error_message = refusal.wire_message();
        }
        response.responses.push(result);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::Refusal;
    use crate::admin_change::testing::assert_encodes;
    use crate::config_change::RESOURCE_TOPIC;
    use crate::errors::ErrorCode;
    use kafka_wire::alter_configs_request::AlterableConfig;

    fn resource(name: &str) -> AlterConfigsResource {
        let mut config = AlterableConfig::default();
        config.name = "retention.ms".into();
        config.value = None;
        let mut resource = AlterConfigsResource::default();
        resource.resource_type = RESOURCE_TOPIC;
        resource.resource_name = name.into();
        resource.configs.push(config);
        resource
    }

    #[test]
    fn a_resource_is_read_as_a_replacement() {
        let resource = resource("t");
        let edit = edit(&resource);
        assert!(edit.replace && edit.kind == RESOURCE_TOPIC && edit.name == "t");
        assert_eq!(edit.keys.len(), 1);
        assert_eq!((edit.keys[0].key, edit.keys[0].value), ("retention.ms", None));
    }

    #[test]
    fn every_version_can_carry_the_response() {
        assert_encodes(0..=2, |_| {
            let refusal = Refusal::new(ErrorCode::InvalidConfig, "x".repeat(40_000));
            let response = respond(vec![resource("a"), resource("b")], vec![Ok(None), Err(refusal)]);
            let codes: Vec<_> = response
                .responses
                .iter()
                .map(|r| (r.resource_name.as_str(), r.error_code))
                .collect();
            assert_eq!(codes, [("a", 0), ("b", 40)]);
            assert_eq!(response.responses[0].error_message, None);
            response
        });
    }
}
