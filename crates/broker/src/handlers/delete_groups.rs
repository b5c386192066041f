//! DeleteGroups (key 42), versions 0-2. Only groups without members; their offsets go with them. Answers
//! after the tombstones are published.

use std::sync::Arc;

use kafka_wire::delete_groups_response::DeletableGroupResult;
use kafka_wire::{DeleteGroupsRequest, DeleteGroupsResponse};

use crate::admin_log;
use crate::broker::{Broker, RequestContext};
use crate::config::quote;
use crate::errors::ErrorCode;
use crate::groups::Inner;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: DeleteGroupsRequest,
) -> DeleteGroupsResponse {
    let response = respond(&broker.groups.inner, request).await;
    admin_log::tell(ctx, &told(&response));
    response
}

/// The groups that were deleted, in words. Their names are the clients' and may be anything.
fn told(response: &DeleteGroupsResponse) -> Vec<String> {
    let done = response
        .results
        .iter()
        .filter(|result| result.error_code == ErrorCode::None.code());
    done.map(|result| format!("deleted group {}", quote(&result.group_id)))
        .collect()
}

async fn respond(groups: &Arc<Inner>, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let names: Vec<String> = request
        .groups_names
        .iter()
        .map(|name| name.as_str().to_owned())
        .collect();
    let codes = groups.delete_groups(&names).await;
    let mut response = DeleteGroupsResponse::default();
    for (group_id, code) in request.groups_names.into_iter().zip(codes) {
        let mut result = DeletableGroupResult::default();
        result.group_id = group_id;
        result.error_code = code.code();
        response.results.push(result);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::testing::{Fixture, commit_simple, encodes, stable};
    use kafka_wire_core::StrBytes;

    #[tokio::test(start_paused = true)]
    async fn only_groups_without_members_are_deleted() {
        let fixture = Fixture::loaded().await;
        stable(&fixture, "members").await;
        commit_simple(&fixture, "a", 5).await;
        commit_simple(&fixture, "b", 5).await;
        let delete = async || {
            let mut request = DeleteGroupsRequest::default();
            request.groups_names = ["a", "members", "missing", "b"].map(StrBytes::from).to_vec();
            let response = respond(&fixture.inner, request).await;
            (0..=2).for_each(|version| encodes(&response, version));
            let deleted = response.results.iter().filter(|r| r.error_code == 0).count();
            assert_eq!(told(&response).len(), deleted);
            response.results.iter().map(|r| r.error_code).collect::<Vec<_>>()
        };
        assert_eq!(delete().await, [0, 68, 69, 0]);
        assert_eq!(delete().await, [69, 68, 69, 69]);
        assert_eq!(fixture.inner.fetch("a", None, true).await.unwrap(), []);
    }
}
