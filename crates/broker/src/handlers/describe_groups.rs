//! DescribeGroups (key 15), versions 0-6. A group that does not exist is Dead; version 6 names the error.

use std::sync::Arc;

use kafka_wire::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_wire::{DescribeGroupsRequest, DescribeGroupsResponse};
use kafka_wire_core::StrBytes;

use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;
use crate::groups::{GroupDescription, GroupState, Inner};

/// Bits of the ACL operations that exist for groups: READ (3), DELETE (6), DESCRIBE (8), DESCRIBE_CONFIGS
/// (10), ALTER_CONFIGS (11). Without ACLs everybody may do everything.
const ALL_GROUP_OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    respond(&broker.groups.inner, ctx, request)
}

fn respond(
    groups: &Arc<Inner>,
    ctx: &RequestContext,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let with_operations = ctx.api_version >= 3 && request.include_authorized_operations;
    let mut response = DescribeGroupsResponse::default();
    for group_id in request.groups {
        let mut row = DescribedGroup::default();
        match groups.describe(&group_id) {
            Ok(Some(group)) => {
                describe(&mut row, group, ctx.api_version);
                if with_operations {
                    row.authorized_operations = ALL_GROUP_OPERATIONS;
                }
            }
            Ok(None) => {
                row.group_state = StrBytes::from(GroupState::Dead.name());
                if ctx.api_version >= 6 {
                    row.error_code = ErrorCode::GroupIdNotFound.code();
                    row.error_message = Some(StrBytes::from(format!("Group {group_id} not found.")));
                }
            }
            Err(error) => row.error_code = error.code(),
        }
        row.group_id = group_id;
        response.groups.push(row);
    }
    response
}

fn describe(row: &mut DescribedGroup, group: GroupDescription, version: i16) {
    row.group_state = StrBytes::from(group.state.name());
    row.protocol_type = StrBytes::from(group.protocol_type);
    row.protocol_data = StrBytes::from(group.protocol);
    for described in group.members {
        let mut member = DescribedGroupMember::default();
        member.member_id = StrBytes::from(described.member_id);
        member.group_instance_id = described.instance_id.map(StrBytes::from).filter(|_| version >= 4);
        member.client_id = StrBytes::from(described.client_id);
        member.client_host = StrBytes::from(described.client_host);
        member.member_metadata = described.metadata;
        member.member_assignment = described.assignment;
        row.members.push(member);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::testing::{Fixture, encodes, stable};

    #[tokio::test(start_paused = true)]
    async fn a_stable_group_and_a_missing_one() {
        let fixture = Fixture::loaded().await;
        let member = stable(&fixture, "g").await;
        for version in 0..=6 {
            let mut request = DescribeGroupsRequest::default();
            request.groups = vec![StrBytes::from("g"), StrBytes::from("missing")];
            request.include_authorized_operations = true;
            let response = respond(&fixture.inner, &fixture.context(version), request);
            encodes(&response, version);
            let [group, missing] = &response.groups[..] else {
                panic!("two groups")
            };
            assert_eq!(group.group_state.as_str(), "Stable");
            assert_eq!(group.protocol_type.as_str(), "consumer");
            assert_eq!(group.protocol_data.as_str(), "range");
            assert_eq!(group.members[0].member_id.as_str(), member);
            assert_eq!(group.members[0].client_host.as_str(), "/127.0.0.1");
            assert_eq!(&group.members[0].member_assignment[..], b"assigned");
            assert_eq!(
                group.authorized_operations,
                if version >= 3 { 3400 } else { i32::MIN }
            );
            assert_eq!(missing.group_state.as_str(), "Dead");
            assert_eq!(missing.error_code, if version >= 6 { 69 } else { 0 });
        }
    }
}
