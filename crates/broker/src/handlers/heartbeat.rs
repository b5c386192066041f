//! Heartbeat (key 12), versions 0-4. Keeps a member's session and tells it of rebalances.

use std::sync::Arc;

use kafka_wire::{HeartbeatRequest, HeartbeatResponse};
use kafka_wire_core::StrBytes;

use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::groups::Inner;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    _ctx: &RequestContext,
    request: HeartbeatRequest,
) -> HeartbeatResponse {
    respond(&broker.groups.inner, request).await
}

async fn respond(groups: &Arc<Inner>, request: HeartbeatRequest) -> HeartbeatResponse {
    let mut response = HeartbeatResponse::default();
    response.error_code = if request.group_id.is_empty() {
        ErrorCode::InvalidGroupId.code()
    } else {
        let instance = request.group_instance_id.map(StrBytes::into_string);
        let member = request.member_id.into_string();
        groups
            .heartbeat(&request.group_id, member, instance, request.generation_id)
            .await
            .code()
    };
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::testing::{Fixture, encodes, stable};

    #[tokio::test(start_paused = true)]
    async fn heartbeats_are_judged_by_group_member_and_generation() {
        let fixture = Fixture::loaded().await;
        let member = stable(&fixture, "g").await;
        let beat = async |group: &str, member: &str, generation: i32| {
            let mut request = HeartbeatRequest::default();
            request.group_id = StrBytes::from(group);
            request.member_id = StrBytes::from(member);
            request.generation_id = generation;
            let response = respond(&fixture.inner, request).await;
            (0..=4).for_each(|version| encodes(&response, version));
            response.error_code
        };
        assert_eq!(beat("g", &member, 1).await, 0);
        assert_eq!(beat("g", &member, 0).await, 22);
        assert_eq!(beat("g", "zombie", 1).await, 25);
        assert_eq!(beat("unknown", &member, 1).await, 25);
        assert_eq!(beat("", &member, 1).await, 24);
    }
}
