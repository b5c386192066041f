//! ArchiveFlush (32001), version 0: a private API for `alluvium archive flush`; see [`crate::history::message`].
//!
//! It is not in the table of APIs, so ApiVersions does not name it. It is answered at once: with how far the partitions
//! that this broker leads are archived, after what is published in them was marked for it if the request says so. A
//! request that is not exactly as it should be closes the connection. Who asks in a loop causes no more than any client may
//! by records and settings: one flush of a topic goes on at a time, they are `archive.flush.min.interval.ms` apart, and
//! topics that nobody asks for get every other file.

use std::sync::Arc;

use alluvium_log::keys;

use crate::broker::Broker;
use crate::connection::{Outcome, Refusal};
use crate::errors::ErrorCode;
use crate::history::message::{
    Flush, PartitionProgress, Progress, Received, Unarchived, VERSION, decode_request, encode_answer,
};
use crate::history::unarchived;
use crate::protocol::Reply;

pub(crate) fn answer(broker: &Arc<Broker>, bytes: &[u8]) -> Outcome {
    let (correlation_id, answer) = match decode_request(bytes) {
        // A broker that cannot prove its ownership may tell of what others have archived since.
        Ok(Received::Flush { correlation_id, .. }) if !broker.log.leased() => {
            (correlation_id, Err(ErrorCode::KafkaStorageError))
        }
        Ok(Received::Flush {
            correlation_id,
            flush,
        }) => (correlation_id, Ok(progress(broker, &flush))),
        Ok(Received::Newer { correlation_id }) => (correlation_id, Err(ErrorCode::UnsupportedVersion)),
        Err(error) => {
            return Outcome::Close(Refusal::Malformed {
                api: "ArchiveFlush",
                version: VERSION,
                error: error.to_string(),
            });
        }
    };
    let frame = encode_answer(correlation_id, answer);
    Outcome::Reply(Reply::new(vec![frame.into()], None))
}

fn progress(broker: &Broker, flush: &Flush) -> Result<Progress, Unarchived> {
    let manifest = broker.log.manifest();
    let topic = manifest.topics.get(&flush.topic).ok_or(Unarchived::Unknown)?;
    if let Some(why) = unarchived(&broker.config, &manifest, &flush.topic) {
        return Err(why);
    }
    if flush.begin {
        broker.flushes.begin(&broker.log, topic.id);
    }
    let led = (0..topic.partitions as i32).filter_map(|index| broker.log.partition(&topic.id, index));
    let partitions = led.map(|partition| {
        let (watermarks, archived_to) = (partition.watermarks(), partition.archived_to());
        PartitionProgress {
            partition: partition.index(),
            log_start: watermarks.log_start_offset,
            end: watermarks.high_watermark,
            archived_to,
            stuck: broker.flushes.is_stuck(&topic.id, partition.index(), archived_to),
        }
    });
    Ok(Progress {
        place: format!(
            "{}/{}",
            broker.config.settings.store_url.trim_end_matches('/'),
            keys::archive_folder(&flush.topic, topic.id)
        ),
        trouble: broker.flushes.trouble(&topic.id).unwrap_or_default(),
        partitions: partitions.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::message::decode_answer;
    use crate::testing;
    use alluvium_log::batch::BatchBuilder;
    use alluvium_log::manifest::Change;
    use std::collections::BTreeMap;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn asked(broker: &Arc<Broker>, request: &[u8]) -> Result<crate::history::message::Answer, Refusal> {
        match answer(broker, request) {
            Outcome::Reply(reply) => Ok(decode_answer(&reply.chunks.concat()[4..], 7).unwrap()),
            Outcome::Close(refusal) => Err(refusal),
            Outcome::Silent => panic!("every request is answered"),
        }
    }

    fn request(topic: &str, begin: bool) -> Vec<u8> {
        let topic = topic.to_owned();
        Flush { begin, topic }.encode(7).unwrap()[4..].to_vec()
    }

    async fn create(broker: &Broker, name: &str, partitions: u32, configs: &[(&str, &str)]) {
        let configs = configs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let created = broker.log.change(vec![Change::CreateTopic {
            name: name.to_owned(),
            partitions,
            replication_factor: 1,
            configs: configs.collect(),
        }]);
        created.await.remove(0).unwrap();
    }

    #[tokio::test]
    async fn what_is_no_request_closes_and_what_is_not_archived_is_said() {
        let broker = testing::broker(&[]).await;
        create(&broker, "compacted", 1, &[("cleanup.policy", "compact")]).await;
        for (topic, why) in [
            ("none", Unarchived::Unknown),
            ("compacted", Unarchived::Compacted),
        ] {
            assert_eq!(asked(&broker, &request(topic, true)).unwrap(), Ok(Err(why)));
        }
        let mut newer = request("none", false);
        newer[3] = 1;
        assert_eq!(asked(&broker, &newer).unwrap(), Err(35));
        let cut = asked(&broker, &request("none", false)[..12]);
        assert!(
            matches!(
                cut,
                Err(Refusal::Malformed {
                    api: "ArchiveFlush",
                    ..
                })
            ),
            "{cut:?}"
        );
    }

    #[tokio::test]
    async fn only_who_asks_for_it_causes_it_and_it_is_told_how_far_it_is() {
        let broker = testing::broker(&[]).await;
        create(&broker, "t", 2, &[]).await;
        let id = broker.log.manifest().topics["t"].id;
        let partition = broker.log.partition(&id, 1).unwrap();
        let mut batch = BatchBuilder::new();
        batch.push(1_000, Some(b"key"), Some(b"value"), &[]);
        batch.push(1_000, None, None, &[]);
        let appended = broker.log.append(&partition, batch.build(), false).unwrap();
        appended.published().await.unwrap();
        let seen = |begin| -> BTreeMap<i32, (i64, i64)> {
            let progress = asked(&broker, &request("t", begin)).unwrap().unwrap().unwrap();
            assert!(progress.place.contains("/archive/topic=t-"), "{progress:?}");
            assert_eq!(progress.trouble, "");
            let partitions = progress.partitions.into_iter();
            partitions
                .map(|p| (p.partition, (p.archived_to, p.end)))
                .collect()
        };
        let before = BTreeMap::from([(0, (0, 0)), (1, (0, 2))]);
        assert_eq!(seen(false), before);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(seen(false), before, "nobody has asked for it");
        seen(true);
        let archived = async {
            while seen(false)[&1] != (2, 2) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, archived).await.unwrap();
    }
}
