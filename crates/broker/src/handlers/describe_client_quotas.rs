//! DescribeClientQuotas (48), versions 0-1.
//!
//! There are no quotas, so a valid filter matches nothing; an invalid one is refused as Kafka refuses it.

use std::collections::HashSet;
use std::sync::Arc;

use kafka_wire::describe_client_quotas_request::ComponentData;
use kafka_wire::{DescribeClientQuotasRequest, DescribeClientQuotasResponse};

use crate::admin_change::Refusal;
use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;

const USER: &str = "user";
const CLIENT_ID: &str = "client-id";
const IP: &str = "ip";

/// How a component matches: the given name, the default entity, or any name.
const MATCH_EXACT: i8 = 0;
const MATCH_DEFAULT: i8 = 1;
const MATCH_SPECIFIED: i8 = 2;

pub(crate) async fn handle(
    _broker: &Arc<Broker>,
    _ctx: &RequestContext,
    request: DescribeClientQuotasRequest,
) -> DescribeClientQuotasResponse {
    respond(&request)
}

fn respond(request: &DescribeClientQuotasRequest) -> DescribeClientQuotasResponse {
    let mut response = DescribeClientQuotasResponse::default();
    response.error_message = None;
    if let Err(refusal) = check(&request.components) {
        response.error_code = refusal.code.code();
        response.error_message = refusal.wire_message();
        response.entries = None;
    }
    response
}

fn check(components: &[ComponentData]) -> Result<(), Refusal> {
    let invalid = |message: String| Err(Refusal::new(ErrorCode::InvalidRequest, message));
    let mut types = HashSet::new();
    for component in components {
        let entity = component.entity_type.as_str();
        if entity.is_empty() {
            return invalid("Invalid empty entity type.".to_owned());
        }
        if !types.insert(entity) {
            return invalid(format!(
                "Entity type {entity} cannot appear more than once in the filter."
            ));
        }
        if ![USER, CLIENT_ID, IP].contains(&entity) {
            return Err(Refusal::new(
                ErrorCode::UnsupportedVersion,
                format!("Unsupported entity type {entity}"),
            ));
        }
        match (component.match_type, &component.match_) {
            (MATCH_EXACT, None) => {
                return invalid("An exact match was asked for without a name to match.".to_owned());
            }
            (MATCH_DEFAULT | MATCH_SPECIFIED, Some(_)) => {
                return invalid("A name to match was given where none can be.".to_owned());
            }
            (MATCH_EXACT | MATCH_DEFAULT | MATCH_SPECIFIED, _) => {}
            (other, _) => return invalid(format!("Unknown match type {other}")),
        }
    }
    if types.contains(IP) && types.len() > 1 {
        return invalid("An ip component cannot be combined with user or client-id.".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::assert_encodes;

    fn filter(components: &[(&str, i8, Option<&str>)]) -> DescribeClientQuotasRequest {
        let mut request = DescribeClientQuotasRequest::default();
        for (entity, match_type, name) in components {
            let mut component = ComponentData::default();
            component.entity_type = (*entity).into();
            component.match_type = *match_type;
            component.match_ = name.map(Into::into);
            request.components.push(component);
        }
        request
    }

    #[test]
    fn filters_are_checked_as_kafka_does() {
        let table = [
            (filter(&[]), 0),
            (filter(&[(USER, MATCH_EXACT, Some("u"))]), 0),
            (
                filter(&[(USER, MATCH_DEFAULT, None), (CLIENT_ID, MATCH_SPECIFIED, None)]),
                0,
            ),
            (filter(&[(IP, MATCH_SPECIFIED, None)]), 0),
            (filter(&[("", MATCH_EXACT, Some("u"))]), 42),
            (
                filter(&[(USER, MATCH_EXACT, Some("u")), (USER, MATCH_DEFAULT, None)]),
                42,
            ),
            (filter(&[("planet", MATCH_EXACT, Some("u"))]), 35),
            (filter(&[(USER, MATCH_EXACT, None)]), 42),
            (filter(&[(USER, MATCH_DEFAULT, Some("u"))]), 42),
            (filter(&[(USER, MATCH_SPECIFIED, Some("u"))]), 42),
            (filter(&[(USER, 3, Some("u"))]), 42),
            (filter(&[(USER, -1, None)]), 42),
            (
                filter(&[(IP, MATCH_SPECIFIED, None), (USER, MATCH_SPECIFIED, None)]),
                42,
            ),
        ];
        for (request, code) in table {
            let response = respond(&request);
            assert_eq!(response.error_code, code, "{request:?}");
            assert_eq!(response.entries.is_some(), code == 0);
            assert_eq!(response.error_message.is_some(), code != 0);
            assert_encodes(0..=1, |_| response.clone());
        }
    }
}
