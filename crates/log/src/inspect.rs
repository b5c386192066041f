//! Objects of a bucket as readable JSON, for people and for `alluvium inspect`. Reads only.

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStoreExt};
use serde_json::{Value, json};

use crate::entry::{ArchivedShares, BatchEntry, Entry, Level, MergedRanges};
use crate::format::segment::{SegmentHeader, decode_index};
use crate::format::{IndexOrMore, ObjectKind, checkpoint, index_of, merged};
use crate::keys;
use crate::partition::image::{PartitionImage, StoredRange};
use crate::store::Store;

/// Keys that an overview lists at most.
const LISTED_MAX: usize = 10_000;

/// Why an object cannot be shown; one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InspectError(String);

/// What to do when there is nothing to look at.
pub const WHAT_TO_GIVE: &str = "give the directory or URL that `serve` uses";

/// The whole bucket in short: its manifest, and what objects there are. A manifest that cannot be read does not
/// hide the rest: its copies are among it.
pub async fn overview(store: &Store) -> Result<Value, InspectError> {
    let failed = |e: object_store::Error| InspectError(format!("{}: {e}", store.display));
    let manifest = match read(store, keys::MANIFEST).await.map_err(failed)? {
        None => {
            return Err(InspectError(format!(
                "{}: no Alluvium cluster here; {WHAT_TO_GIVE}",
                store.display
            )));
        }
        Some(bytes) => readable(&bytes).unwrap_or_else(|why| json!({ "damaged": why })),
    };
    let mut objects = vec![];
    let mut truncated = false;
    let mut list = store.bulk.list(Some(&store.prefix));
    while let Some(ObjectMeta { location, size, .. }) = list.try_next().await.map_err(failed)? {
        truncated = objects.len() == LISTED_MAX;
        if truncated {
            break;
        }
        objects.push(json!({ "key": relative(store, location.as_ref()), "bytes": size }));
    }
    Ok(json!({ "store": store.display, "manifest": manifest, "objects": objects, "truncated": truncated }))
}

async fn read(store: &Store, key: &str) -> Result<Option<Bytes>, object_store::Error> {
    match store.bulk.get(&store.key(key)).await {
        Ok(found) => found.bytes().await.map(Some),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

fn relative(store: &Store, location: &str) -> String {
    let prefix = store.prefix.as_ref();
    location
        .strip_prefix(prefix)
        .unwrap_or(location)
        .trim_start_matches('/')
        .to_owned()
}

/// One object by its key below the store's prefix.
pub async fn object(store: &Store, key: &str) -> Result<Value, InspectError> {
    let display = &store.display;
    let found = read(store, key).await;
    let bytes = found.map_err(|e| InspectError(format!("{display}: {e}")))?;
    let bytes = bytes.ok_or_else(|| InspectError(missing(store, key)))?;
    readable(&bytes).map_err(|e| InspectError(format!("{display}: {key}: {e}")))
}

/// What is said of a key that is not there; one line.
pub fn missing(store: &Store, key: &str) -> String {
    let display = &store.display;
    format!("{display}: there is no {key}; KEY is one of those that `alluvium inspect {display}` lists")
}

/// An object's bytes as JSON, or what is wrong with them.
pub fn readable(bytes: &Bytes) -> Result<Value, String> {
    if bytes.first() == Some(&b'{') {
        return serde_json::from_slice(bytes).map_err(|e| format!("not valid JSON: {e}"));
    }
    if let Ok(c) = checkpoint::decode(bytes, None) {
        return Ok(checkpoint_json(&c));
    }
    if crate::format::check_preamble(bytes, ObjectKind::Merged, None).is_ok() {
        return merged_object_json(bytes);
    }
    let cluster =
        crate::format::check_preamble(bytes, ObjectKind::Segment, None).map_err(|e| e.to_string())?;
    match index_of(bytes, ObjectKind::Segment).map_err(|e| e.to_string())? {
        IndexOrMore::NeedSuffix(_) => Err("cut short".into()),
        IndexOrMore::Index(index) => {
            let index = decode_index(index).map_err(|e| e.to_string())?;
            let entries: Vec<Value> = index.entries.iter().map(entry_json).collect();
            let mut out = header_json(&index.header);
            out["cluster_id"] = json!(cluster);
            out["bytes"] = json!(bytes.len());
            out["entries"] = json!(entries);
            Ok(out)
        }
    }
}

fn merged_object_json(bytes: &Bytes) -> Result<Value, String> {
    let cluster =
        crate::format::check_preamble(bytes, ObjectKind::Merged, None).map_err(|e| e.to_string())?;
    match index_of(bytes, ObjectKind::Merged).map_err(|e| e.to_string())? {
        IndexOrMore::NeedSuffix(_) => Err("cut short".into()),
        IndexOrMore::Index(index) => {
            let index = merged::decode_index(index).map_err(|e| e.to_string())?;
            let h = &index.header;
            Ok(json!({
                "kind": "merged", "incarnation": h.incarnation, "number": h.number, "nonce": h.nonce,
                "manifest_version": h.manifest_version, "written_ms": h.written_ms, "cluster_id": cluster,
                "bytes": bytes.len(), "entries": index.entries.iter().map(|m| merged_json("merged", m)).collect::<Vec<_>>(),
            }))
        }
    }
}

fn header_json(h: &SegmentHeader) -> Value {
    let mut out = json!({
        "kind": if h.seal.is_some() { "seal" } else { "segment" },
        "incarnation": h.incarnation,
        "seq": h.seq,
        "nonce": h.nonce,
        "manifest_version": h.manifest_version,
        "checkpoint_next": h.checkpoint_next,
        "committed_next": h.committed_next,
        "written_ms": h.written_ms,
    });
    if let Some(s) = &h.seal {
        out["seal"] = json!({ "taker": s.taker, "taker_node": s.taker_node, "reason": s.reason });
    }
    out
}

fn entry_json(e: &Entry) -> Value {
    match e {
        Entry::LogStart {
            partition,
            leader_epoch,
            offset,
        } => json!({
            "kind": "log_start", "topic": partition.topic, "partition": partition.partition,
            "leader_epoch": leader_epoch, "offset": offset,
        }),
        Entry::Release {
            slot,
            leader_epoch,
            image,
        } => json!({
            "kind": "release", "slot": slot, "leader_epoch": leader_epoch, "image_bytes": image.len(),
        }),
        Entry::Merged(m) => merged_json("merged", m),
        Entry::Compacted(c) => {
            let mut out = merged_json("compacted", &c.merged);
            out["clean_to"] = json!(c.clean_to);
            out
        }
        Entry::Archived(a) => archived_json(a),
        Entry::Batches(r) => json!({
            "kind": "batches", "topic": r.partition.topic, "partition": r.partition.partition,
            "leader_epoch": r.leader_epoch, "position": r.position, "append_time_ms": r.append_time_ms,
            "batches": r.batches.iter().map(batch_json).collect::<Vec<_>>(),
        }),
    }
}

fn merged_json(kind: &str, m: &MergedRanges) -> Value {
    json!({
        "kind": kind, "topic": m.partition.topic, "partition": m.partition.partition,
        "leader_epoch": m.leader_epoch, "file": m.file, "position": m.position, "base_offset": m.base_offset,
        "ranges": m.ranges.iter().map(|r| json!({
            "last_offset": r.last_offset, "bytes": r.len, "max_timestamp": r.max_timestamp,
            "append_time_ms": r.append_time_ms,
        })).collect::<Vec<_>>(),
    })
}

fn archived_json(a: &ArchivedShares) -> Value {
    json!({
        "kind": "archived", "topic": a.partition.topic, "partition": a.partition.partition,
        "leader_epoch": a.leader_epoch, "file": a.file, "base_offset": a.base_offset,
        "shares": a.shares.iter().map(|s| json!({
            "last_offset": s.last_offset, "first_row": s.first_row, "bytes": s.len,
            "max_timestamp": s.max_timestamp, "append_time_ms": s.append_time_ms,
        })).collect::<Vec<_>>(),
    })
}

fn batch_json(b: &BatchEntry) -> Value {
    let mut out = json!({
        "base_offset": b.base_offset, "last_offset": b.last_offset, "records": b.records, "bytes": b.size,
        "base_timestamp": b.base_timestamp, "max_timestamp": b.max_timestamp, "attributes": b.attributes,
    });
    if let Some(p) = b.producer {
        out["producer"] = json!({ "id": p.id, "epoch": p.epoch, "first_sequence": p.first_sequence,
            "last_sequence": p.last_sequence });
    }
    out
}

fn checkpoint_json(c: &checkpoint::Checkpoint) -> Value {
    let slots: Vec<Value> = c
        .slots
        .iter()
        .filter(|(_, s)| !s.partitions.is_empty())
        .map(|(slot, s)| {
            let partitions: Vec<Value> = s
                .partitions
                .iter()
                .map(|(tp, i)| {
                    let mut p = image_json(i);
                    p["topic"] = json!(tp.topic);
                    p["partition"] = json!(tp.partition);
                    p
                })
                .collect();
            json!({ "slot": slot, "epoch": s.epoch, "partitions": partitions })
        })
        .collect();
    json!({
        "kind": "checkpoint", "incarnation": c.incarnation, "next": c.next,
        "manifest_version": c.manifest_version, "written_ms": c.written_ms,
        "slots_covered": c.slots.len(), "slots": slots,
    })
}

fn image_json(i: &PartitionImage) -> Value {
    json!({
        "log_start_offset": i.state.log_start, "end_offset": i.state.end,
        "epochs": i.state.epochs, "producers": i.state.producers.len(), "bytes": i.bytes,
        "clean_to": i.clean_to,
        "ranges": i.ranges.iter().map(range_json).collect::<Vec<_>>(),
    })
}

fn range_json(r: &StoredRange) -> Value {
    let mut out = json!({
        "base_offset": r.base_offset, "last_offset": r.last_offset, "key": keys::place(r.place), "bytes": r.len,
    });
    let at = match r.place.level {
        Level::L2 => "first_row",
        Level::L0 | Level::L1 => "position",
    };
    out[at] = json!(r.position);
    out
}
