//! The bucket: what the store holds, with S3's rules. No faults here, they happen on the way: see `store`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::world::Millis;

/// One object.
#[derive(Clone, Debug)]
pub struct Object {
    pub bytes: Bytes,
    /// A hash of the content, as in S3: equal bytes have equal tags.
    pub etag: String,
    pub written: Millis,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Bucket {
    pub objects: BTreeMap<String, Object>,
    /// Deleted keys that a LIST may still show, and when they went.
    pub deleted: BTreeMap<String, (Object, Millis)>,
    pub count: Counts,
    /// Tags that each key has had: what [`crate::mutation::Mutation::EtagAba`] needs.
    pub past: BTreeMap<String, BTreeSet<String>>,
}

/// Requests and objects so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub puts: u64,
    pub gets: u64,
    pub deletes: u64,
    pub lists: u64,
    pub faults: u64,
    pub created: u64,
    pub removed: u64,
}

/// The condition of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum If {
    Always,
    Absent,
    Tag(String),
}

/// What the store says to a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    Done(String),
    Exists,
    Changed,
    Missing,
}

/// Tag of a content.
pub fn etag(bytes: &[u8]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("{hash:016x}-{}", bytes.len())
}

impl Bucket {
    pub fn put(&mut self, key: &str, bytes: Bytes, condition: &If, now: Millis) -> Put {
        self.count.puts += 1;
        let present = self.objects.get(key);
        match (condition, present) {
            (If::Absent, Some(_)) => return Put::Exists,
            (If::Tag(_), None) => return Put::Missing,
            (If::Tag(tag), Some(object)) if object.etag != *tag => return Put::Changed,
            _ => {}
        }
        self.count.created += u64::from(present.is_none());
        let etag = etag(&bytes);
        self.deleted.remove(key);
        if matches!(condition, If::Tag(_)) || key.ends_with(".json") {
            self.past.entry(key.to_owned()).or_default().insert(etag.clone());
        }
        self.objects.insert(
            key.to_owned(),
            Object {
                bytes,
                etag: etag.clone(),
                written: now,
            },
        );
        Put::Done(etag)
    }

    pub fn get(&mut self, key: &str) -> Option<Object> {
        self.count.gets += 1;
        self.objects.get(key).cloned()
    }

    pub fn delete(&mut self, key: &str, now: Millis) {
        self.count.deletes += 1;
        if let Some(object) = self.objects.remove(key) {
            self.count.removed += 1;
            self.deleted.insert(key.to_owned(), (object, now));
        }
    }

    /// The keys below `prefix`, as they were up to `stale` ago: each key by itself, so that the whole is no state
    /// that ever was.
    pub fn list(
        &mut self,
        prefix: &str,
        now: Millis,
        mut stale: impl FnMut() -> Millis,
    ) -> Vec<(String, Object)> {
        self.count.lists += 1;
        let mut found = vec![];
        for (key, object) in &self.objects {
            if key.starts_with(prefix) && object.written + stale() <= now {
                found.push((key.clone(), object.clone()));
            }
        }
        for (key, (object, at)) in &self.deleted {
            if key.starts_with(prefix) && at + stale() > now {
                found.push((key.clone(), object.clone()));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }
}
