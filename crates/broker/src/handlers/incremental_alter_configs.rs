//! IncrementalAlterConfigs (44), versions 0-1.
//!
//! Sets, deletes, appends to and subtracts from single configs of a topic, of this broker, or of all brokers
//! (the empty name). There are no loggers to alter, and no configs of groups or client metrics yet.

use std::sync::Arc;

use kafka_wire::incremental_alter_configs_request::AlterConfigsResource;
use kafka_wire::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_wire::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use crate::admin_change::{Outcome, carry_out, patience};
use crate::broker::{Broker, RequestContext};
use crate::config_change::{KeyEdit, ResourceEdit, decide};
use crate::handlers::alter_configs::with_rules;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let decisions = {
        let edits: Vec<_> = request.resources.iter().map(edit).collect();
        with_rules(broker, |rules| decide(&edits, rules))
    };
    // The request has no timeout field.
    let outcomes = carry_out(&broker.log, ctx, decisions, request.validate_only, patience(0)).await;
    respond(request.resources, outcomes)
}

fn edit(resource: &AlterConfigsResource) -> ResourceEdit<'_> {
    let keys = resource.configs.iter().map(|config| KeyEdit {
        key: &config.name,
        operation: config.config_operation,
        value: config.value.as_deref(),
    });
    ResourceEdit {
        kind: resource.resource_type,
        name: &resource.resource_name,
        replace: false,
        keys: keys.collect(),
    }
}

fn respond(resources: Vec<AlterConfigsResource>, outcomes: Vec<Outcome>) -> IncrementalAlterConfigsResponse {
    let mut response = IncrementalAlterConfigsResponse::default();
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
    use crate::config_change::RESOURCE_BROKER;
    use crate::errors::ErrorCode;
    use kafka_wire::incremental_alter_configs_request::AlterableConfig;

    fn resource(name: &str) -> AlterConfigsResource {
        let mut config = AlterableConfig::default();
        config.name = "log.cleanup.policy".into();
        config.config_operation = 2;
        config.value = Some("compact".into());
        let mut resource = AlterConfigsResource::default();
        resource.resource_type = RESOURCE_BROKER;
        resource.resource_name = name.into();
        resource.configs.push(config);
        resource
    }

    #[test]
    fn a_resource_is_read_with_its_operations() {
        let resource = resource("1");
        let edit = edit(&resource);
        assert!(!edit.replace && edit.kind == RESOURCE_BROKER && edit.name == "1");
        assert_eq!((edit.keys[0].operation, edit.keys[0].value), (2, Some("compact")));
    }

    #[test]
    fn every_version_can_carry_the_response() {
        assert_encodes(0..=1, |_| {
            let refusal = Refusal::new(ErrorCode::InvalidRequest, "x".repeat(40_000));
            let response = respond(vec![resource(""), resource("1")], vec![Ok(None), Err(refusal)]);
            let codes: Vec<_> = response
                .responses
                .iter()
                .map(|r| (r.resource_name.as_str(), r.error_code))
                .collect();
            assert_eq!(codes, [("", 0), ("1", 42)]);
            response
        });
    }
}
