//! FindCoordinator (key 10), versions 0-6.
//!
//! Key type 0 (groups) is answered with the leader of the group's `__consumer_offsets` partition; the topic
//! is created when the first group is looked for. Key type 1 (transactional ids) gets an error that clients
//! take as final: transactions are not served yet, and a retriable error would make a producer wait for
//! ever. Other types are invalid requests.

use std::sync::Arc;

use kafka_wire::find_coordinator_response::Coordinator as CoordinatorRow;
use kafka_wire::{FindCoordinatorRequest, FindCoordinatorResponse};
use kafka_wire_core::StrBytes;

use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::groups::{CoordinatorEndpoint, Inner, fits};

const KEY_TYPE_GROUP: i8 = 0;
const KEY_TYPE_TRANSACTION: i8 = 1;
/// From this version on a request names many keys, and each has its own answer.
const BATCHED_SINCE: i16 = 4;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    respond(&broker.groups.inner, ctx, request).await
}

async fn respond(
    groups: &Arc<Inner>,
    ctx: &RequestContext,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    let mut response = FindCoordinatorResponse::default();
    if ctx.api_version >= BATCHED_SINCE {
        for key in request.coordinator_keys {
            let found = find(groups, ctx, request.key_type, &key).await;
            let mut row = CoordinatorRow::default();
            row.key = key;
            (row.error_code, row.error_message, row.node_id, row.host, row.port) = fields(found);
            response.coordinators.push(row);
        }
    } else {
        let found = find(groups, ctx, request.key_type, &request.key).await;
        let message;
        (
            response.error_code,
            message,
            response.node_id,
            response.host,
            response.port,
        ) = fields(found);
        response.error_message = message.filter(|_| ctx.api_version >= 1);
    }
    response
}

async fn find(
    groups: &Arc<Inner>,
    ctx: &RequestContext,
    key_type: i8,
    key: &str,
) -> Result<CoordinatorEndpoint, (ErrorCode, &'static str)> {
    match key_type {
        KEY_TYPE_GROUP if !fits(key) => Err((ErrorCode::InvalidGroupId, "The group id is too long.")),
        KEY_TYPE_GROUP => groups
            .find(key, &ctx.listener)
            .await
            .map_err(|error| (error, "The coordinator is not available; try again.")),
        KEY_TYPE_TRANSACTION => Err((
            ErrorCode::TransactionalIdAuthorizationFailed,
            "This broker does not serve transactions; use a producer without a transactional id.",
        )),
        _ => Err((
            ErrorCode::InvalidRequest,
            "Only coordinators of groups can be looked for.",
        )),
    }
}

type Fields = (i16, Option<StrBytes>, i32, StrBytes, i32);

fn fields(found: Result<CoordinatorEndpoint, (ErrorCode, &'static str)>) -> Fields {
    match found {
        Ok(endpoint) => (
            ErrorCode::None.code(),
            None,
            endpoint.node_id,
            StrBytes::from(endpoint.host),
            i32::from(endpoint.port),
        ),
        Err((error, message)) => (
            error.code(),
            Some(StrBytes::from(message)),
            -1,
            StrBytes::default(),
            -1,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::testing::{Fixture, encodes};

    fn request(version: i16, key_type: i8, key: &str) -> FindCoordinatorRequest {
        let mut request = FindCoordinatorRequest::default();
        request.key_type = key_type;
        if version >= BATCHED_SINCE {
            request.coordinator_keys = vec![StrBytes::from(key)];
        } else {
            request.key = StrBytes::from(key);
        }
        request
    }

    #[tokio::test(start_paused = true)]
    async fn the_topic_is_created_when_the_first_group_is_looked_for() {
        for version in 0..=6 {
            let fixture = Fixture::without_topic();
            let ctx = fixture.context(version);
            let response = respond(&fixture.inner, &ctx, request(version, 0, "g")).await;
            encodes(&response, version);
            let (code, node, port) = match response.coordinators.first() {
                Some(row) => (row.error_code, row.node_id, row.port),
                None => (response.error_code, response.node_id, response.port),
            };
            assert_eq!((code, node, port), (0, 7, 9092), "version {version}");
            assert!(fixture.inner.topic("__consumer_offsets").is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn transactional_ids_get_an_error_that_ends_the_client() {
        let fixture = Fixture::loaded().await;
        for version in 1..=6 {
            let ctx = fixture.context(version);
            let response = respond(&fixture.inner, &ctx, request(version, 1, "tx")).await;
            encodes(&response, version);
            let code = response
                .coordinators
                .first()
                .map_or(response.error_code, |row| row.error_code);
            assert_eq!(code, ErrorCode::TransactionalIdAuthorizationFailed.code());
        }
        let response = respond(&fixture.inner, &fixture.context(6), request(6, 2, "share")).await;
        assert_eq!(
            response.coordinators[0].error_code,
            ErrorCode::InvalidRequest.code()
        );
    }
}
