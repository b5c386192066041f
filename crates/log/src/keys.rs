//! Keys of the objects in the bucket, below the store's prefix (`Store::key` puts it in front).

use uuid::Uuid;

use crate::{Incarnation, Seq};

/// The manifest.
pub const MANIFEST: &str = "cluster/manifest.json";

/// A numbered copy of the manifest.
pub fn manifest_copy(version: u64) -> String {
    format!("cluster/history/{version:020}.json")
}

/// The folder of a stream. The hash in front spreads streams over a store's key partitions.
pub fn stream(incarnation: Incarnation) -> String {
    // The finaliser of SplitMix64: neighbouring incarnations get unlike hashes.
    let mut h = incarnation.wrapping_add(0x9e37_79b9_7f4a_7c15);
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    format!("wal/{:04x}-{incarnation}", (h ^ (h >> 31)) as u16)
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
}
