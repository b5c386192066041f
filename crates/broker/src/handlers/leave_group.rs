//! LeaveGroup (key 13), versions 0-5. One member up to version 2, then many, static ones by instance id.
//! When the last member leaves, the answer waits until that is stored.

use std::sync::Arc;

use kafka_wire::leave_group_response::MemberResponse;
use kafka_wire::{LeaveGroupRequest, LeaveGroupResponse};
use kafka_wire_core::StrBytes;

use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::groups::Inner;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: LeaveGroupRequest,
) -> LeaveGroupResponse {
    respond(&broker.groups.inner, ctx, request).await
}

async fn respond(
    groups: &Arc<Inner>,
    ctx: &RequestContext,
    request: LeaveGroupRequest,
) -> LeaveGroupResponse {
    let batched = ctx.api_version >= 3;
    let mut response = LeaveGroupResponse::default();
    if request.group_id.is_empty() {
        response.error_code = ErrorCode::InvalidGroupId.code();
        return response;
    }
    let identities: Vec<(StrBytes, Option<StrBytes>)> = if batched {
        request
            .members
            .into_iter()
            .map(|m| (m.member_id, m.group_instance_id))
            .collect()
    } else {
        vec![(request.member_id, None)]
    };
    let plain = |(member, instance): &(StrBytes, Option<StrBytes>)| {
        (
            member.as_str().to_owned(),
            instance.as_ref().map(|i| i.as_str().to_owned()),
        )
    };
    match groups
        .leave(&request.group_id, identities.iter().map(plain).collect())
        .await
    {
        Err(error) => response.error_code = error.code(),
        Ok(codes) if batched => {
            for ((member_id, instance_id), code) in identities.into_iter().zip(codes) {
                let mut member = MemberResponse::default();
                member.member_id = member_id;
                member.group_instance_id = instance_id;
                member.error_code = code.code();
                response.members.push(member);
            }
        }
        Ok(codes) => response.error_code = codes.first().copied().unwrap_or(ErrorCode::None).code(),
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::testing::{Fixture, encodes, stable};
    use kafka_wire::leave_group_request::MemberIdentity;

    #[tokio::test(start_paused = true)]
    async fn members_leave_one_by_one_or_many_at_once() {
        for version in 0..=5 {
            let fixture = Fixture::loaded().await;
            let member = stable(&fixture, "g").await;
            let mut request = LeaveGroupRequest::default();
            request.group_id = StrBytes::from("g");
            if version >= 3 {
                for id in [member.as_str(), "zombie"] {
                    let mut identity = MemberIdentity::default();
                    identity.member_id = StrBytes::from(id);
                    request.members.push(identity);
                }
            } else {
                request.member_id = StrBytes::from(member.as_str());
            }
            let response = respond(&fixture.inner, &fixture.context(version), request.clone()).await;
            encodes(&response, version);
            assert_eq!(response.error_code, 0);
            if version >= 3 {
                let codes: Vec<i16> = response.members.iter().map(|m| m.error_code).collect();
                assert_eq!(codes, [0, 25]);
            }
            // Again: it is gone.
            let response = respond(&fixture.inner, &fixture.context(version), request).await;
            encodes(&response, version);
            let code = response
                .members
                .first()
                .map_or(response.error_code, |m| m.error_code);
            assert_eq!(code, 25, "version {version}");
        }
    }
}
