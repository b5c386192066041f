//! ArchiveFlush (32001), version 0: a private API for `alluvium archive flush`; see [`crate::history::message`].
//!
//! It is not in the table of APIs, so ApiVersions does not name it. It is answered at once: with how far the partitions
//! that this broker leads are archived, after what is published in them was marked for it if the request says so. A
//! request that is not exactly as it should be closes the connection. It causes no more than any client may by records
//! and settings: at most one flush of a topic goes on at a time.

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
