//! ListPartitionReassignments (46), version 0.
//!
//! Partitions have one leader and no replicas to move, and the cluster hands them over by itself, so none is ever
//! being reassigned by request; as in Kafka, topics that do not exist are left out without an error.

use std::sync::Arc;

use kafka_wire::{ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse};

use crate::broker::{Broker, RequestContext};

pub(crate) async fn handle(
    _broker: &Arc<Broker>,
    _ctx: &RequestContext,
    _request: ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    respond()
}

fn respond() -> ListPartitionReassignmentsResponse {
    let mut response = ListPartitionReassignmentsResponse::default();
    response.error_message = None;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::assert_encodes;

    #[test]
    fn nothing_is_under_way() {
        assert_encodes(0..=0, |_| {
            let response = respond();
            assert_eq!(
                (
                    response.error_code,
                    &response.error_message,
                    response.topics.len()
                ),
                (0, &None, 0)
            );
            response
        });
    }
}
