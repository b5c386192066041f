//! PeerPing (32000), version 0: a private API between brokers; see [`crate::peers`].
//!
//! It is not in the table of APIs, so ApiVersions does not name it. A request that is not exactly as it should
//! be closes the connection; one of another cluster gets an error and learns nothing. The answer is made of what
//! is in memory, so that it comes however the store is doing. A peer with a newer manifest makes this broker look
//! at the manifest, in the background.

use std::sync::Arc;

use crate::broker::Broker;
use crate::connection::{Outcome, Refusal};
use crate::errors::ErrorCode;
use crate::peers::message::{Pong, Received, VERSION, decode_request, encode_answer};
use crate::protocol::Reply;

pub(crate) fn answer(broker: &Arc<Broker>, bytes: &[u8]) -> Outcome {
    let reply = |frame: Vec<u8>| Outcome::Reply(Reply::new(vec![frame.into()], None));
    let (correlation_id, ping) = match decode_request(bytes) {
        Ok(Received::Ping { correlation_id, ping }) => (correlation_id, ping),
        Ok(Received::Newer { correlation_id }) => {
            return reply(encode_answer(correlation_id, Err(ErrorCode::UnsupportedVersion)));
        }
        Err(error) => {
            return Outcome::Close(Refusal::Malformed {
                api: "PeerPing",
                version: VERSION,
                error: error.to_string(),
            });
        }
    };
    if ping.cluster != broker.log.manifest().cluster_id {
        return reply(encode_answer(
            correlation_id,
            Err(ErrorCode::InconsistentClusterId),
        ));
    }
    let pong = Pong {
        incarnation: broker.log.incarnation(),
        manifest_version: broker.log.applied_version(),
        draining: broker.readiness.is_draining(),
    };
    if ping.manifest_version > pong.manifest_version {
        broker.nudges.hear();
    }
    reply(encode_answer(correlation_id, Ok(pong)))
}
