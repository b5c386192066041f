//! SyncGroup (key 14), versions 0-5.
//!
//! The leader's request stores the assignments; everybody is answered after they are published. Version 5
//! must repeat the protocol type and name that the JoinGroup answer gave.

use std::sync::Arc;

use bytes::Bytes;
use kafka_wire::{SyncGroupRequest, SyncGroupResponse};
use kafka_wire_core::StrBytes;

use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::groups::{Inner, Sync, SyncReply, fits};

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: SyncGroupRequest,
) -> SyncGroupResponse {
    respond(&broker.groups.inner, ctx, request).await
}

async fn respond(groups: &Arc<Inner>, ctx: &RequestContext, request: SyncGroupRequest) -> SyncGroupResponse {
    let reply = match check(ctx.api_version, &request) {
        Ok(()) => {
            let group = request.group_id.as_str().to_owned();
            groups.sync(&group, to_sync(request)).await
        }
        Err(error) => SyncReply::error(error),
    };
    let mut response = SyncGroupResponse::default();
    response.error_code = reply.error.code();
    response.assignment = reply.assignment;
    if ctx.api_version >= 5 {
        response.protocol_type = reply.protocol_type.map(StrBytes::from);
        response.protocol_name = reply.protocol.map(StrBytes::from);
    }
    response
}

fn check(version: i16, request: &SyncGroupRequest) -> Result<(), ErrorCode> {
    if request.group_id.is_empty() || !fits(&request.group_id) {
        return Err(ErrorCode::InvalidGroupId);
    }
    if version >= 5 && (request.protocol_type.is_none() || request.protocol_name.is_none()) {
        return Err(ErrorCode::InconsistentGroupProtocol);
    }
    Ok(())
}

fn to_sync(request: SyncGroupRequest) -> Sync {
    // Copied: a slice would keep the whole request in memory for as long as the generation lives.
    let assignment = |a: &kafka_wire::sync_group_request::SyncGroupRequestAssignment| {
        (
            a.member_id.as_str().to_owned(),
            Bytes::copy_from_slice(&a.assignment),
        )
    };
    Sync {
        member_id: request.member_id.into_string(),
        instance_id: request.group_instance_id.map(StrBytes::into_string),
        generation: request.generation_id,
        protocol_type: request.protocol_type.map(StrBytes::into_string),
        protocol: request.protocol_name.map(StrBytes::into_string),
        assignments: request.assignments.iter().map(assignment).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::testing::{Fixture, encodes, joined};

    #[tokio::test(start_paused = true)]
    async fn the_leader_gets_what_it_assigned_in_every_version() {
        for version in 0..=5 {
            let fixture = Fixture::loaded().await;
            let member = joined(&fixture, "g").await;
            let mut request = SyncGroupRequest::default();
            request.group_id = StrBytes::from("g");
            request.generation_id = 1;
            request.member_id = StrBytes::from(member.as_str());
            let mut assignment = kafka_wire::sync_group_request::SyncGroupRequestAssignment::default();
            assignment.member_id = StrBytes::from(member.as_str());
            assignment.assignment = Bytes::from_static(b"all of it");
            request.assignments.push(assignment);
            if version >= 5 {
                let refused = respond(&fixture.inner, &fixture.context(5), request.clone()).await;
                assert_eq!(refused.error_code, ErrorCode::InconsistentGroupProtocol.code());
                request.protocol_type = Some(StrBytes::from("consumer"));
                request.protocol_name = Some(StrBytes::from("range"));
            }
            let response = respond(&fixture.inner, &fixture.context(version), request).await;
            encodes(&response, version);
            assert_eq!(response.error_code, 0);
            assert_eq!(response.assignment, Bytes::from_static(b"all of it"));
        }
    }
}
