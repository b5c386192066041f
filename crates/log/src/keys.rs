//! Keys of the objects in the bucket, below the store's prefix (`Store::key` puts it in front).

use uuid::Uuid;

use crate::entry::{Level, Place};
use crate::{Incarnation, Seq, TopicId};

/// The folder of all streams.
pub const STREAMS: &str = "wal";

/// The manifest.
pub const MANIFEST: &str = "cluster/manifest.json";

/// The folder of the manifest's numbered copies.
pub const HISTORY: &str = "cluster/history";

/// A numbered copy of the manifest.
pub fn manifest_copy(version: u64) -> String {
    format!("{HISTORY}/{version:020}.json")
}

/// The version of a numbered copy, from the last part of its key.
pub fn copied_version(name: &str) -> Option<u64> {
    name.strip_suffix(".json")?.parse().ok()
}

/// Where a manifest that could not be read is kept when a copy takes its place.
pub fn replaced_manifest(commit: Uuid) -> String {
    format!("cluster/replaced/{}", commit.simple())
}

/// The incarnation of a stream, from the name of its folder below [`STREAMS`]. A folder that only looks like that of a
/// stream is somebody else's.
pub fn stream_of(folder: &str) -> Option<Incarnation> {
    let incarnation = folder.rsplit_once('-')?.1.parse().ok()?;
    (stream(incarnation).rsplit_once('/')?.1 == folder).then_some(incarnation)
}

/// The folder of a stream. The hash in front spreads streams over a store's key partitions.
pub fn stream(incarnation: Incarnation) -> String {
    // The finaliser of SplitMix64: neighbouring incarnations get unlike hashes.
    let mut h = incarnation.wrapping_add(0x9e37_79b9_7f4a_7c15);
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    format!("{STREAMS}/{:04x}-{incarnation}", (h ^ (h >> 31)) as u16)
}

/// A segment or seal.
pub fn segment(incarnation: Incarnation, seq: Seq) -> String {
    format!("{}/{seq:020}", stream(incarnation))
}

/// The head of a stream.
pub fn head(incarnation: Incarnation) -> String {
    format!("{}/head.json", stream(incarnation))
}

/// A checkpoint.
pub fn checkpoint(incarnation: Incarnation, next: Seq, nonce: Uuid) -> String {
    format!("{}/checkpoint/{next:020}-{}", stream(incarnation), nonce.simple())
}

/// A merged object. Numbers count within a broker start, and one that was given up is not used again.
pub fn merged(incarnation: Incarnation, number: u64) -> String {
    format!("merged/{incarnation}/{number:020}")
}

/// The folder of all files of history.
pub const ARCHIVE: &str = "archive";

/// So much of a topic's name stands in the name of its folder.
const ARCHIVE_NAME_MAX: usize = 240;

/// What the name of a file of history ends in.
const ARCHIVE_FILE: &str = ".parquet";

/// The folder of a topic's files of history, as a query engine sees it: a partition column `topic`. The start of the
/// topic's id tells it from an earlier topic of the same name.
pub fn archive_folder(name: &str, id: TopicId) -> String {
    let mut encoded = String::with_capacity(name.len());
    for b in name.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => encoded.push(char::from(b)),
            // What Kafka allows in a name is not among it.
            _ => encoded.push_str(&format!("%{b:02X}")),
        }
    }
    // A part of a key has at most 255 bytes in a directory.
    encoded.truncate(ARCHIVE_NAME_MAX);
    format!("{ARCHIVE}/topic={encoded}-{}", &id.simple().to_string()[..8])
}

/// A file of history. Numbers count within a broker start, and one that was given up is not used again.
pub fn archived(name: &str, id: TopicId, incarnation: Incarnation, number: u64) -> String {
    let folder = archive_folder(name, id);
    format!("{folder}/{}", archive_file(incarnation, number))
}

fn archive_file(incarnation: Incarnation, number: u64) -> String {
    format!("{incarnation:020}-{number:020}{ARCHIVE_FILE}")
}

/// Folder (as [`archive_folder`] names it), incarnation and number of a file of history, from a key without the
/// store's prefix; `None` if it is no such file.
pub fn parse_archived(key: &str) -> Option<(&str, Incarnation, u64)> {
    let (folder, file) = key.rsplit_once('/')?;
    let topic = folder.strip_prefix(ARCHIVE)?.strip_prefix("/topic=")?;
    let (incarnation, number) = file.strip_suffix(ARCHIVE_FILE)?.split_once('-')?;
    let (incarnation, number) = (incarnation.parse().ok()?, number.parse().ok()?);
    let ours = !topic.contains('/') && archive_file(incarnation, number) == file;
    ours.then_some((folder, incarnation, number))
}

/// The object that a place names. Of a file of history only the name, for people: its folder is its topic's
/// ([`archived`]).
pub fn place(place: Place) -> String {
    match place.level {
        Level::L0 => segment(place.incarnation, place.seq),
        Level::L1 => merged(place.incarnation, place.seq),
        Level::L2 => archive_file(place.incarnation, place.seq),
    }
}

/// What a key in the folder of streams is, by what stands after `wal/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InStream {
    /// A segment or a seal.
    Segment(Seq),
    /// A checkpoint that holds everything below this seq.
    Checkpoint(Seq),
    /// Anything else, the head among it.
    Other,
}

/// Takes a key apart that lies below [`STREAMS`], given without the store's prefix; `None` if it is of no stream.
pub fn parse_in_stream(key: &str) -> Option<(Incarnation, InStream)> {
    let below = key.strip_prefix(STREAMS)?.strip_prefix('/')?;
    let (folder, name) = below.split_once('/')?;
    let incarnation = stream_of(folder)?;
    let digits = |text: &str| {
        let plain = text.len() == 20 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| plain)
    };
    let found = match name.strip_prefix("checkpoint/") {
        None => digits(name).map(InStream::Segment),
        Some(name) => {
            let next = name.split_once('-').and_then(|(next, _)| digits(next));
            next.map(InStream::Checkpoint)
        }
    };
    Some((incarnation, found.unwrap_or(InStream::Other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_by_seq_and_streams_spread() {
        assert!(segment(7, 9) < segment(7, 10));
        assert_eq!(stream(1), stream(1));
        let hashes: std::collections::HashSet<_> = (1..200).map(|i| stream(i)[4..8].to_owned()).collect();
        assert!(hashes.len() > 190);
    }

    #[test]
    fn a_key_of_a_stream_is_taken_apart() {
        let nonce = Uuid::from_u128(3);
        assert_eq!(parse_in_stream(&segment(7, 9)), Some((7, InStream::Segment(9))));
        assert_eq!(
            parse_in_stream(&checkpoint(7, 9, nonce)),
            Some((7, InStream::Checkpoint(9)))
        );
        assert_eq!(parse_in_stream(&head(7)), Some((7, InStream::Other)));
        for other in [
            "wal/0000-7/00000000000000000009",
            "wal/x",
            "cluster/manifest.json",
            &merged(7, 9),
        ] {
            assert_eq!(parse_in_stream(other), None, "{other}");
        }
        let short = format!("{}/9", stream(7));
        assert_eq!(parse_in_stream(&short), Some((7, InStream::Other)));
    }

    #[test]
    fn a_key_of_history_is_taken_apart() {
        let id = Uuid::from_u128(0x1234_5678_0000_0000_0000_0000_0000_0001);
        let key = archived("orders.v1_x-y", id, 7, u64::MAX);
        assert_eq!(
            key,
            "archive/topic=orders.v1_x-y-12345678/00000000000000000007-18446744073709551615.parquet"
        );
        let folder = archive_folder("orders.v1_x-y", id);
        assert_eq!(parse_archived(&key), Some((folder.as_str(), 7, u64::MAX)));
        let odd = archived("a/b c%é", id, 1, 2);
        assert!(
            odd.starts_with("archive/topic=a%2Fb%20c%25%C3%A9-12345678/"),
            "{odd}"
        );
        assert!(parse_archived(&odd).is_some());
        let long = archive_folder(&"n".repeat(249), id);
        assert_eq!(long.len() - "archive/".len(), 255);
        for other in [
            "archive/topic=t-12345678/7-1.parquet",
            "archive/topic=t-12345678/00000000000000000007-+0000000000000000001.parquet",
            "archive/topic=t-12345678/part-0001.parquet",
            "archive/topic=t-12345678/x/00000000000000000007-00000000000000000001.parquet",
            "archive/00000000000000000007-00000000000000000001.parquet",
            "other/topic=t-12345678/00000000000000000007-00000000000000000001.parquet",
            &merged(7, 1),
        ] {
            assert_eq!(parse_archived(other), None, "{other}");
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for incarnation in [1, 77, u64::MAX] {
            let folder = stream(incarnation);
            assert_eq!(stream_of(&folder["wal/".len()..]), Some(incarnation));
        }
        assert_eq!(stream_of("0000-1"), None);
        assert_eq!(stream_of("lost+found"), None);
        let copy = manifest_copy(42);
        assert_eq!(copied_version(&copy["cluster/history/".len()..]), Some(42));
        assert_eq!(copied_version("42.txt"), None);
    }
}
