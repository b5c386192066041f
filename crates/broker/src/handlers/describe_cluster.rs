//! DescribeCluster (60), versions 0-2.
//!
//! Brokers are the live streams of the manifest, with the endpoint of the listener that the request came in
//! by, or else any that they have. The live broker with the lowest incarnation is named as controller, as in Metadata:
//! clients send admin requests there, and any broker can carry them out.

use std::collections::BTreeMap;
use std::sync::Arc;

use alluvium_log::Incarnation;
use alluvium_log::manifest::{Endpoint, StreamEntry};
use kafka_wire::describe_cluster_response::DescribeClusterBroker;
use kafka_wire::{DescribeClusterRequest, DescribeClusterResponse};
use kafka_wire_core::StrBytes;

use crate::broker::{Broker, RequestContext};
use crate::errors::ErrorCode;

/// `EndpointType` of Kafka (KIP-919): 1 is brokers, 2 is controllers.
const ENDPOINT_BROKERS: i8 = 1;
const ENDPOINT_CONTROLLERS: i8 = 2;
/// Codes of KIP-919 that only this API answers.
const MISMATCHED_ENDPOINT_TYPE: i16 = 114;
const UNSUPPORTED_ENDPOINT_TYPE: i16 = 115;
/// First version that says whether a broker is fenced.
const FIRST_VERSION_WITH_FENCED: i16 = 2;

/// The operations on a cluster that anybody may do where no ACLs exist, as Kafka's bit field: create, alter,
/// describe, cluster action, describe configs, alter configs, idempotent write.
pub(crate) const CLUSTER_OPERATIONS: i32 = 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12;

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: DescribeClusterRequest,
) -> DescribeClusterResponse {
    let manifest = broker.log.manifest();
    respond(
        ctx.api_version,
        &request,
        &manifest.cluster_id,
        manifest.controller().map(|(_, stream)| stream.node_id),
        &nodes(&manifest.streams, &ctx.listener),
    )
}

/// A broker as clients of one listener see it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ClusterNode<'a> {
    endpoint: &'a Endpoint,
    rack: Option<&'a str>,
    /// Whether it is up; one that is down may still own partitions until somebody takes over.
    live: bool,
}

/// The brokers by id, as clients of `listener` see them. Of several streams of a broker a live one counts, and
/// the newest.
fn nodes<'a>(
    streams: &'a BTreeMap<Incarnation, StreamEntry>,
    listener: &str,
) -> BTreeMap<i32, ClusterNode<'a>> {
    let mut nodes: BTreeMap<i32, ClusterNode<'a>> = BTreeMap::new();
    for stream in streams.values() {
        let Some(endpoint) = stream
            .endpoints
            .get(listener)
            .or_else(|| stream.endpoints.values().next())
        else {
            continue;
        };
        if !stream.is_live() && nodes.get(&stream.node_id).is_some_and(|node| node.live) {
            continue;
        }
        let node = ClusterNode {
            endpoint,
            rack: stream.rack.as_deref(),
            live: stream.is_live(),
        };
        nodes.insert(stream.node_id, node);
    }
    nodes
}

fn respond(
    version: i16,
    request: &DescribeClusterRequest,
    cluster_id: &uuid::Uuid,
    controller: Option<i32>,
    nodes: &BTreeMap<i32, ClusterNode<'_>>,
) -> DescribeClusterResponse {
    let mut response = DescribeClusterResponse::default();
    if request.endpoint_type != ENDPOINT_BROKERS {
        let (code, message) = match request.endpoint_type {
            ENDPOINT_CONTROLLERS => (
                MISMATCHED_ENDPOINT_TYPE,
                "The request was sent to a broker and asks for controllers".to_owned(),
            ),
            other => (
                UNSUPPORTED_ENDPOINT_TYPE,
                format!("Unsupported endpoint type {other}"),
            ),
        };
        response.error_code = if version == 0 {
            ErrorCode::InvalidRequest.code()
        } else {
            code
        };
        response.error_message = Some(StrBytes::from(message));
        return response;
    }
    response.cluster_id = StrBytes::from(cluster_id.to_string());
    let is_listed = |id: &i32| nodes.get(id).is_some_and(|node| node.live);
    response.controller_id = controller.filter(is_listed).unwrap_or(-1);
    if request.include_cluster_authorized_operations {
        response.cluster_authorized_operations = CLUSTER_OPERATIONS;
    }
    let with_fenced = version >= FIRST_VERSION_WITH_FENCED && request.include_fenced_brokers;
    for (id, node) in nodes.iter().filter(|(_, node)| node.live || with_fenced) {
        let mut broker = DescribeClusterBroker::default();
        broker.broker_id = *id;
        broker.host = StrBytes::from(node.endpoint.host.as_str());
        broker.port = i32::from(node.endpoint.port);
        broker.rack = node.rack.map(StrBytes::from);
        broker.is_fenced = !node.live;
        response.brokers.push(broker);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_change::testing::{assert_encodes, stream};

    const ID: uuid::Uuid = uuid::Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

    fn streams() -> BTreeMap<Incarnation, StreamEntry> {
        let mut racked = stream(2, true, &[("IN", "two.in", 2), ("OUT", "two.out", 22)]);
        racked.rack = Some("r".to_owned());
        [
            (1, stream(1, false, &[("IN", "old-one.in", 1)])),
            (2, racked),
            (3, stream(1, true, &[("IN", "one.in", 1)])),
            (
                4,
                stream(3, false, &[("IN", "three.in", 3), ("OUT", "three.out", 33)]),
            ),
            // A second process with the id of a live one, sealed since.
            (
                5,
                stream(2, false, &[("IN", "gone-two.in", 5), ("OUT", "gone-two.out", 55)]),
            ),
        ]
        .into()
    }

    fn shown(response: &DescribeClusterResponse) -> Vec<(i32, &str, i32, bool)> {
        response
            .brokers
            .iter()
            .map(|b| (b.broker_id, b.host.as_str(), b.port, b.is_fenced))
            .collect()
    }

    #[test]
    fn brokers_are_shown_by_listener() {
        let streams = streams();
        let request = DescribeClusterRequest::default();
        let inside = respond(1, &request, &ID, Some(2), &nodes(&streams, "IN"));
        assert_eq!(shown(&inside), [(1, "one.in", 1, false), (2, "two.in", 2, false)]);
        assert_eq!(inside.brokers[1].rack.as_deref(), Some("r"));
        assert_eq!(
            (inside.controller_id, inside.cluster_id.as_str()),
            (2, &*ID.to_string())
        );
        // Broker 1 has no endpoint outside.
        let outside = respond(1, &request, &ID, Some(2), &nodes(&streams, "OUT"));
        assert_eq!(
            shown(&outside),
            [(1, "one.in", 1, false), (2, "two.out", 22, false)]
        );
        let none = respond(1, &request, &ID, Some(2), &BTreeMap::new());
        assert_eq!((shown(&none), none.controller_id), (vec![], -1));
        // One that is not live, or not shown, is no address for admin requests.
        for controller in [None, Some(3), Some(9)] {
            let response = respond(1, &request, &ID, controller, &nodes(&streams, "IN"));
            assert_eq!(response.controller_id, -1, "{controller:?}");
        }
    }

    #[test]
    fn fenced_brokers_are_shown_when_asked_for() {
        let streams = streams();
        let mut request = DescribeClusterRequest::default();
        request.include_fenced_brokers = true;
        let response = respond(2, &request, &ID, Some(2), &nodes(&streams, "OUT"));
        assert_eq!(
            shown(&response),
            [
                (1, "one.in", 1, false),
                (2, "two.out", 22, false),
                (3, "three.out", 33, true)
            ]
        );
    }

    #[test]
    fn other_endpoint_types_are_refused() {
        let streams = streams();
        let code = |version, endpoint_type| {
            let mut request = DescribeClusterRequest::default();
            request.endpoint_type = endpoint_type;
            let response = respond(version, &request, &ID, Some(2), &nodes(&streams, "IN"));
            assert!(response.brokers.is_empty());
            response.error_code
        };
        assert_eq!(
            [code(1, 2), code(1, 0), code(1, 9), code(0, 2), code(0, 0)],
            [114, 115, 115, 42, 42]
        );
    }

    #[test]
    fn operations_are_reported_when_asked_for() {
        let mut request = DescribeClusterRequest::default();
        let empty = BTreeMap::new();
        assert_eq!(
            respond(2, &request, &ID, Some(2), &empty).cluster_authorized_operations,
            i32::MIN
        );
        request.include_cluster_authorized_operations = true;
        // What Kafka's own brokers answer without an authorizer.
        assert_eq!(
            respond(2, &request, &ID, Some(2), &empty).cluster_authorized_operations,
            8096
        );
    }

    #[test]
    fn every_version_can_carry_the_response() {
        let streams = streams();
        for endpoint_type in [ENDPOINT_BROKERS, ENDPOINT_CONTROLLERS, 7] {
            assert_encodes(0..=2, |version| {
                let mut request = DescribeClusterRequest::default();
                request.endpoint_type = endpoint_type;
                request.include_fenced_brokers = true;
                request.include_cluster_authorized_operations = true;
                respond(version, &request, &ID, Some(2), &nodes(&streams, "IN"))
            });
        }
    }
}
