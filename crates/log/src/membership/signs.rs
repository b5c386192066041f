//! Signs of life in a store: a stream's head and its end.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::BoxFuture;
use object_store::ObjectStoreExt;
use parking_lot::Mutex;
use uuid::Uuid;

use super::Signs;
use crate::head::Head;
use crate::keys;
use crate::liveness::Sign;
use crate::store::Store;
use crate::store::conditional;
use crate::store::reason_of;
use crate::{Incarnation, Seq};

/// Reads signs of life from the bucket.
#[derive(Clone, Debug)]
pub struct StoreSigns {
    store: Store,
    cluster: Uuid,
    /// Streams of whose damaged head was told.
    told: Arc<Mutex<BTreeSet<Incarnation>>>,
}

impl StoreSigns {
    /// Signs of the streams of this cluster.
    pub fn new(store: Store, cluster: Uuid) -> StoreSigns {
        StoreSigns {
            store,
            cluster,
            told: Arc::default(),
        }
    }

    async fn sign(&self, stream: Incarnation, known: Seq) -> Result<Sign, String> {
        let key = self.store.key(&keys::head(stream));
        let found = conditional::read(&self.store, &key)
            .await
            .map_err(|e| e.to_string())?;
        let none = || Head::new(self.cluster, stream, Uuid::nil());
        let head = found.map_or_else(
            || Ok(none()),
            |found| Head::decode(&found.bytes, self.cluster, stream),
        );
        // One that cannot be read shows no life; whoever takes the stream over says that it cannot.
        let head = head.unwrap_or_else(|why| {
            if self.told.lock().insert(stream) {
                tracing::warn!(%key, %why, "the head of a broker that does not answer is damaged");
            }
            none()
        });
        Ok(Sign {
            heartbeat: head.heartbeat,
            tip: head.tip,
            end: self.end(stream, known.max(head.tip)).await?,
        })
    }

    /// A missing key of a stream, right behind one that is there unless it is `from` itself. Writes run in parallel,
    /// so it need not be the only one, and need not stay the same; a stream that has ended has just one.
    async fn end(&self, stream: Incarnation, from: Seq) -> Result<Seq, String> {
        // The head may be ten seconds old and the stream hundreds of keys further: strides double, then halve.
        let (mut there, mut stride) = (None, 1);
        let mut missing = from;
        while self.exists(stream, missing).await? {
            there = Some(missing);
            missing += stride;
            stride *= 2;
        }
        let Some(mut there) = there else {
            return Ok(missing);
        };
        while missing - there > 1 {
            let middle = there + (missing - there) / 2;
            if self.exists(stream, middle).await? {
                there = middle;
            } else {
                missing = middle;
            }
        }
        Ok(missing)
    }

    async fn exists(&self, stream: Incarnation, seq: Seq) -> Result<bool, String> {
        let key = self.store.key(&keys::segment(stream, seq));
        match self.store.bulk.head(&key).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(reason_of(&e)),
        }
    }
}

impl Signs for StoreSigns {
    fn look(&self, stream: Incarnation, known: Seq) -> BoxFuture<'static, Result<Sign, String>> {
        let this = self.clone();
        Box::pin(async move { this.sign(stream, known).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    #[tokio::test]
    async fn the_end_of_a_stream_is_found_from_an_old_head() {
        let store = Store::open("memory://", StoreOptions::default()).await.unwrap();
        let cluster = Uuid::from_u128(1);
        let signs = StoreSigns::new(store.clone(), cluster);
        let nothing = Sign {
            heartbeat: 0,
            tip: 0,
            end: 0,
        };
        assert_eq!(signs.look(7, 0).await, Ok(nothing));
        let put = async |key: String, bytes: Vec<u8>| {
            store.bulk.put(&store.key(&key), bytes.into()).await.unwrap();
        };
        for seq in 0..100 {
            assert_eq!(signs.look(7, 0).await.map(|s| s.end), Ok(seq));
            put(keys::segment(7, seq), vec![]).await;
        }
        let mut head = Head::new(cluster, 7, Uuid::from_u128(2));
        (head.heartbeat, head.tip) = (3, 60);
        put(keys::head(7), head.encode()).await;
        let sign = Sign {
            heartbeat: 3,
            tip: 60,
            end: 100,
        };
        assert_eq!(signs.look(7, 0).await, Ok(sign));
        // From where it ended before, nothing below is asked for.
        assert_eq!(signs.look(7, 100).await, Ok(sign));
        assert_eq!(signs.look(7, 400).await.map(|s| s.end), Ok(400));
        put(keys::head(7), b"{".to_vec()).await;
        let dead = Sign { end: 100, ..nothing };
        assert_eq!(signs.look(7, 0).await, Ok(dead), "damaged, it is no sign of life");
    }
}
