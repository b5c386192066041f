//! JoinGroup (key 11), versions 0-9.
//!
//! Answers when the rebalance that it is part of ends. Version 0 knows no rebalance timeout: the session
//! timeout stands for it. From version 4 on dynamic members are first given an id, from 5 on members may be
//! static, from 9 on a returning static leader may skip the assignment.

use std::sync::Arc;

use bytes::Bytes;
use kafka_wire::join_group_response::JoinGroupResponseMember;
use kafka_wire::{JoinGroupRequest, JoinGroupResponse};
use kafka_wire_core::StrBytes;

use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::groups::{Inner, Join, JoinReply, Protocol, fits};

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: JoinGroupRequest,
) -> JoinGroupResponse {
    respond(&broker.groups.inner, ctx, request).await
}

async fn respond(groups: &Arc<Inner>, ctx: &RequestContext, request: JoinGroupRequest) -> JoinGroupResponse {
    let member_id = request.member_id.as_str().to_owned();
    let reply = match check(groups, &request) {
        Ok(()) => {
            let group = request.group_id.as_str().to_owned();
            groups.join(&group, to_join(ctx, request)).await
        }
        Err(error) => JoinReply::error(error, &member_id),
    };
    to_response(ctx.api_version, reply)
}

fn check(groups: &Inner, request: &JoinGroupRequest) -> Result<(), ErrorCode> {
    let limits = groups.limits();
    let session = i64::from(request.session_timeout_ms);
    if request.group_id.is_empty() || !fits(&request.group_id) {
        return Err(ErrorCode::InvalidGroupId);
    }
    if session < limits.session_timeout_min_ms || session > limits.session_timeout_max_ms {
        return Err(ErrorCode::InvalidSessionTimeout);
    }
    let instance = request.group_instance_id.as_ref();
    let texts_fit = fits(&request.member_id)
        && fits(&request.protocol_type)
        && instance.is_none_or(|id| fits(id) && !id.is_empty())
        && request.protocols.iter().all(|protocol| fits(&protocol.name));
    if texts_fit {
        Ok(())
    } else {
        Err(ErrorCode::InvalidRequest)
    }
}

fn to_join(ctx: &RequestContext, request: JoinGroupRequest) -> Join {
    let has_rebalance_timeout = ctx.api_version >= 1;
    // Copied: a slice would keep the whole request in memory for as long as the member lives.
    let protocol = |p: &kafka_wire::join_group_request::JoinGroupRequestProtocol| Protocol {
        name: p.name.as_str().to_owned(),
        metadata: Bytes::copy_from_slice(&p.metadata),
    };
    Join {
        member_id: request.member_id.into_string(),
        instance_id: request.group_instance_id.map(StrBytes::into_string),
        client_id: ctx.client_id.as_ref().to_owned(),
        client_host: ctx.client_host.as_ref().to_owned(),
        session_timeout_ms: request.session_timeout_ms,
        rebalance_timeout_ms: if has_rebalance_timeout {
            request.rebalance_timeout_ms
        } else {
            request.session_timeout_ms
        },
        protocol_type: request.protocol_type.into_string(),
        protocols: request.protocols.iter().map(protocol).collect(),
        requires_known_member_id: ctx.api_version >= 4,
        supports_skipping_assignment: ctx.api_version >= 9,
        unique: uuid::Uuid::new_v4(),
    }
}

fn to_response(version: i16, reply: JoinReply) -> JoinGroupResponse {
    let mut response = JoinGroupResponse::default();
    response.error_code = reply.error.code();
    response.generation_id = reply.generation;
    response.leader = StrBytes::from(reply.leader);
    response.member_id = StrBytes::from(reply.member_id);
    response.skip_assignment = reply.skip_assignment;
    response.protocol_name = reply.protocol.map(StrBytes::from);
    if version >= 7 {
        response.protocol_type = reply.protocol_type.map(StrBytes::from);
    } else {
        // Null came with version 7.
        response.protocol_name.get_or_insert_default();
    }
    for (member_id, instance_id, metadata) in reply.members {
        let mut member = JoinGroupResponseMember::default();
        member.member_id = StrBytes::from(member_id);
        member.group_instance_id = instance_id.map(StrBytes::from).filter(|_| version >= 5);
        member.metadata = metadata;
        response.members.push(member);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::testing::{Fixture, encodes, join_request};

    #[tokio::test(start_paused = true)]
    async fn every_version_joins_and_names_its_leader() {
        for version in 0..=9 {
            let fixture = Fixture::loaded().await;
            let ctx = fixture.context(version);
            let mut request = join_request("g", "");
            let mut response = respond(&fixture.inner, &ctx, request.clone()).await;
            encodes(&response, version);
            if version >= 4 {
                assert_eq!(response.error_code, ErrorCode::MemberIdRequired.code());
                request.member_id = response.member_id.clone();
                response = respond(&fixture.inner, &ctx, request).await;
                encodes(&response, version);
            }
            assert_eq!(response.error_code, 0, "version {version}");
            assert_eq!(response.generation_id, 1);
            assert_eq!(response.leader, response.member_id);
            assert!(response.member_id.starts_with("client-"));
            assert_eq!(response.members.len(), 1);
            assert_eq!(response.protocol_name.as_deref(), Some("range"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_is_refused() {
        let fixture = Fixture::loaded().await;
        let refused = async |change: fn(&mut JoinGroupRequest), version: i16| {
            let mut request = join_request("g", "");
            change(&mut request);
            let response = respond(&fixture.inner, &fixture.context(version), request).await;
            encodes(&response, version);
            response.error_code
        };
        assert_eq!(refused(|r| r.group_id = StrBytes::default(), 5).await, 24);
        assert_eq!(refused(|r| r.session_timeout_ms = 5, 5).await, 26);
        assert_eq!(refused(|r| r.session_timeout_ms = i32::MAX, 5).await, 26);
        assert_eq!(refused(|r| r.protocols.clear(), 9).await, 23);
        assert_eq!(refused(|r| r.protocol_type = StrBytes::default(), 0).await, 23);
        assert_eq!(refused(|r| r.member_id = StrBytes::from("nobody"), 6).await, 25);
        assert_eq!(
            refused(|r| r.protocol_type = StrBytes::from("x".repeat(40_000)), 6).await,
            42
        );
    }
}
