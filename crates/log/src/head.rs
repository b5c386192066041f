//! `head.json` of a stream: where to start reading it.
//!
//! Only the stream's owner writes it, by compare-and-swap: at each checkpoint and every 30 s. It is what makes
//! the floor rule hold (section 5 of the design): the floor is durable here *before* anything below it is
//! deleted, and a taker reads it again after every seal it makes or finds.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::format::checked_json;
use crate::manifest::Format;
use crate::{Incarnation, Seq};

const KIND: &str = "alluvium head";

/// The head of one stream. A stream without one has no checkpoint, floor 0 and tip 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Magic and versions.
    pub format: Format,
    /// The cluster.
    pub cluster_id: Uuid,
    /// The stream.
    pub incarnation: Incarnation,
    /// Fresh at every write, so that bytes never repeat.
    pub commit_id: Uuid,
    /// Newest durable checkpoint.
    pub checkpoint: Option<CheckpointRef>,
    /// Segments below may be gone.
    pub floor: Seq,
    /// First seq that was not published when this was written: a hint for where to look.
    pub tip: Seq,
    /// Counts writes; a standing counter is the sign of a dead owner.
    pub heartbeat: u64,
    /// Manifest version that the owner had applied.
    pub manifest_version: u64,
}

/// A durable checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRef {
    /// It holds everything below this seq.
    pub next: Seq,
    /// Last part of its key.
    pub nonce: Uuid,
}

impl Head {
    /// The first head of a stream.
    pub fn new(cluster_id: Uuid, incarnation: Incarnation, commit_id: Uuid) -> Head {
        Head {
            format: Format::new(KIND),
            cluster_id,
            incarnation,
            commit_id,
            checkpoint: None,
            floor: 0,
            tip: 0,
            heartbeat: 0,
            manifest_version: 0,
        }
    }

    /// Reads and checks a head; the error is one sentence.
    pub fn decode(bytes: &[u8], cluster_id: Uuid, incarnation: Incarnation) -> Result<Head, String> {
        let head: Head = serde_json::from_slice(bytes).map_err(|e| format!("not a valid head: {e}"))?;
        head.format.check(KIND)?;
        checked_json::check(bytes).map_err(|e| format!("not a valid head: {e}"))?;
        if head.cluster_id != cluster_id {
            return Err(format!(
                "belongs to cluster {}, not {cluster_id}",
                head.cluster_id
            ));
        }
        if head.incarnation != incarnation {
            return Err(format!(
                "is the head of stream {}, not {incarnation}",
                head.incarnation
            ));
        }
        if head.floor > head.first_unread() {
            return Err(format!("floor {} lies beyond the checkpoint", head.floor));
        }
        Ok(head)
    }

    /// Whether these bytes are a head, and another cluster's.
    pub(crate) fn is_of_another(bytes: &[u8], cluster: Uuid) -> bool {
        serde_json::from_slice::<Head>(bytes).is_ok_and(|head| head.cluster_id != cluster)
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        checked_json::seal(serde_json::to_vec(self).unwrap_or_default())
    }

    /// First seq that the newest checkpoint does not hold.
    pub fn first_unread(&self) -> Seq {
        self.checkpoint.as_ref().map_or(0, |c| c.next)
    }
}

/// The floor that a new head may name: never beyond its checkpoint, never beyond a segment that any
/// partition still needs (`oldest_needed`), never back.
pub fn floor(before: Seq, checkpoint_next: Seq, oldest_needed: Option<Seq>) -> Seq {
    oldest_needed
        .map_or(checkpoint_next, |o| o.min(checkpoint_next))
        .max(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_stops_at_what_is_needed() {
        assert_eq!(floor(0, 9, None), 9);
        assert_eq!(floor(0, 9, Some(4)), 4);
        assert_eq!(floor(0, 9, Some(12)), 9);
        assert_eq!(floor(3, 9, Some(4)), 4);
    }

    #[test]
    fn a_head_of_another_stream_or_cluster_is_refused() {
        let (cluster, id) = (Uuid::from_u128(1), Uuid::from_u128(3));
        let mut head = Head::new(cluster, 7, id);
        assert_eq!(Head::decode(&head.encode(), cluster, 7).unwrap(), head);
        assert!(
            Head::decode(&head.encode(), cluster, 8)
                .unwrap_err()
                .contains("stream 7")
        );
        assert!(
            Head::decode(&head.encode(), id, 7)
                .unwrap_err()
                .contains("belongs to cluster")
        );
        head.floor = 1;
        assert!(
            Head::decode(&head.encode(), cluster, 7)
                .unwrap_err()
                .contains("floor 1")
        );
        assert!(Head::decode(b"[]", cluster, 7).is_err());
        head.floor = 0;
        let mut flipped = head.encode();
        let tip = b"\"tip\":0";
        let at = flipped.windows(tip.len()).position(|w| w == tip).unwrap() + tip.len() - 1;
        flipped[at] ^= 1;
        assert!(
            Head::decode(&flipped, cluster, 7)
                .unwrap_err()
                .contains("checksum")
        );
    }
}
