//! ListGroups (key 16), versions 0-5. Filters by state since version 4, by type since version 5; both ignore
//! case, and a filter that names nothing known matches nothing.

use std::sync::Arc;

use kafka_wire::list_groups_response::ListedGroup;
use kafka_wire::{ListGroupsRequest, ListGroupsResponse};
use kafka_wire_core::StrBytes;

use crate::broker::{Broker, RequestContext};
use crate::groups::Inner;

/// The only kind of group that is served.
const CLASSIC: &str = "classic";

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: ListGroupsRequest,
) -> ListGroupsResponse {
    respond(&broker.groups.inner, ctx, request)
}

fn respond(groups: &Arc<Inner>, ctx: &RequestContext, request: ListGroupsRequest) -> ListGroupsResponse {
    let mut response = ListGroupsResponse::default();
    let listings = match groups.list() {
        Ok(listings) => listings,
        Err(error) => {
            response.error_code = error.code();
            return response;
        }
    };
    let passes = |filter: &[StrBytes], name: &str| {
        filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(name))
    };
    for listing in listings {
        if !passes(&request.states_filter, listing.state.name()) || !passes(&request.types_filter, CLASSIC) {
            continue;
        }
        let mut group = ListedGroup::default();
        group.group_id = StrBytes::from(listing.group);
        group.protocol_type = StrBytes::from(listing.protocol_type);
        if ctx.api_version >= 4 {
            group.group_state = StrBytes::from(listing.state.name());
        }
        if ctx.api_version >= 5 {
            group.group_type = StrBytes::from(CLASSIC);
        }
        response.groups.push(group);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::testing::{Fixture, commit_simple, encodes, stable};

    #[tokio::test(start_paused = true)]
    async fn filters_choose_by_state_and_type() {
        let fixture = Fixture::loaded().await;
        stable(&fixture, "members").await;
        commit_simple(&fixture, "offsets-only", 5).await;
        let list = |version: i16, states: &[&str], types: &[&str]| {
            let mut request = ListGroupsRequest::default();
            request.states_filter = states.iter().map(|s| StrBytes::from(*s)).collect();
            request.types_filter = types.iter().map(|s| StrBytes::from(*s)).collect();
            let response = respond(&fixture.inner, &fixture.context(version), request);
            encodes(&response, version);
            response
                .groups
                .iter()
                .map(|g| g.group_id.as_str().to_owned())
                .collect::<Vec<_>>()
        };
        for version in 0..=5 {
            assert_eq!(list(version, &[], &[]), ["members", "offsets-only"]);
        }
        assert_eq!(list(4, &["stable"], &[]), ["members"]);
        assert_eq!(list(5, &["Empty", "nonsense"], &["Classic"]), ["offsets-only"]);
        assert_eq!(list(5, &[], &["consumer"]), Vec::<String>::new());
        assert_eq!(list(4, &["nonsense"], &[]), Vec::<String>::new());
    }
}
