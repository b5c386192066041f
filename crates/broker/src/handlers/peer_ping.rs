//! PeerPing (32000), version 0: a private API between brokers; see [`crate::peers`].
//!
//! It is not in the table of APIs, so ApiVersions does not name it. A request that is not exactly as it should
//! be closes the connection; one of another cluster gets an error and learns nothing. A broker that cannot prove its
//! ownership, because it has lost the store, says so: it is of no use to its clients, and others look at the store
//! whether it is so for all. A peer with a newer manifest makes this broker look
//! at the manifest, in the background.

use std::sync::Arc;

use alluvium_log::membership::Pong;

use crate::broker::Broker;
use crate::connection::{Outcome, Refusal};
use crate::errors::ErrorCode;
use crate::peers::message::{Received, VERSION, decode_request, encode_answer};
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
        manifest_version: broker.log.applied_manifest_version(),
        draining: broker.readiness.is_draining(),
    };
    if ping.manifest_version > pong.manifest_version {
        broker.nudges.hear();
    }
    if !broker.log.leased() {
        return reply(encode_answer(correlation_id, Err(ErrorCode::KafkaStorageError)));
    }
    reply(encode_answer(correlation_id, Ok(pong)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::message::{Ping, decode_answer};
    use crate::testing;
    use alluvium_log::LogOptions;

    fn asked(broker: &Arc<Broker>, request: &[u8]) -> Result<Result<Pong, i16>, Refusal> {
        match answer(broker, request) {
            Outcome::Reply(reply) => Ok(decode_answer(&reply.chunks.concat()[4..], 7).unwrap()),
            Outcome::Close(refusal) => Err(refusal),
            Outcome::Silent => panic!("every ping is answered"),
        }
    }

    fn ping(broker: &Broker) -> Ping {
        Ping {
            cluster: broker.log.manifest().cluster_id,
            incarnation: 9,
            manifest_version: 0,
        }
    }

    #[tokio::test]
    async fn only_brokers_of_the_cluster_hear_of_it() {
        let broker = testing::broker(&[]).await;
        let own = ping(&broker);
        let version = broker.log.manifest().version;
        let pong = asked(&broker, &own.encode(7)[4..]).unwrap().unwrap();
        assert_eq!(
            (pong.incarnation, pong.manifest_version, pong.draining),
            (1, version, false)
        );
        broker.readiness.drain();
        assert!(asked(&broker, &own.encode(7)[4..]).unwrap().unwrap().draining);
        let stranger = Ping {
            cluster: uuid::Uuid::from_u128(1),
            ..own
        };
        assert_eq!(asked(&broker, &stranger.encode(7)[4..]).unwrap(), Err(104));
        let mut newer = own.encode(7)[4..].to_vec();
        newer[3] = 1;
        assert_eq!(asked(&broker, &newer).unwrap(), Err(35));
        for length in [8, 20, 41] {
            let cut = asked(&broker, &own.encode(7)[4..4 + length]);
            assert!(
                matches!(cut, Err(Refusal::Malformed { api: "PeerPing", .. })),
                "{cut:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_newer_manifest_is_looked_at() {
        let (broker, store) = testing::broker_and_store(&[]).await;
        let before = broker.log.manifest();
        // On a store of one process nobody polls: what happens here happens because of the ping.
        let other = LogOptions {
            node_id: Some(2),
            ..broker.config.settings.log.clone()
        };
        let clock = Arc::new(alluvium_log::SystemClock);
        let taker = alluvium_log::Log::open(store, other, clock, &mut Default::default()).await;
        let newest = taker.unwrap().manifest().version;
        let mut seen = broker.log.manifest_changes();
        asked(&broker, &ping(&broker).encode(7)[4..]).unwrap().unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert_eq!(
            broker.log.manifest().version,
            before.version,
            "it says nothing new"
        );
        let newer = Ping {
            manifest_version: newest,
            ..ping(&broker)
        };
        asked(&broker, &newer.encode(7)[4..]).unwrap().unwrap();
        seen.wait_for(|manifest| manifest.version == newest)
            .await
            .unwrap();
    }
}
