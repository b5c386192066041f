//! The store of a chaos run: the fake in this process, a MinIO, or any bucket that is reached by plain HTTP.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::minio::Minio;
use crate::s3_fake::{Options, S3Fake};

/// Which store a run is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreChoice {
    /// The strict fake, with latencies in the form of its options.
    Fake(String),
    /// A MinIO built by `tests/minio.sh install`.
    Minio,
    /// A bucket; the AWS_* variables say where it is.
    Url(String),
}

/// A running store.
#[derive(Debug)]
pub(super) struct ChaosStore {
    running: Running,
    url: String,
    env: Vec<(String, String)>,
    address: SocketAddr,
}

#[derive(Debug)]
enum Running {
    Fake(S3Fake),
    /// Runs as long as it is held.
    Minio {
        _process: Minio,
    },
    Elsewhere,
}

impl ChaosStore {
    /// Starts it, or looks where it is.
    ///
    /// # Errors
    /// A sentence about what is missing.
    pub(super) fn start(choice: &StoreChoice, seed: u64) -> Result<ChaosStore, String> {
        let (running, url, env) = match choice {
            StoreChoice::Fake(latencies) => {
                let options = Options {
                    seed,
                    latencies: latencies.parse()?,
                    ..Options::default()
                };
                let fake = S3Fake::start(options).map_err(|error| format!("the fake: {error}"))?;
                let (url, env) = (fake.store_url("chaos"), fake.env());
                (Running::Fake(fake), url, env)
            }
            StoreChoice::Minio => {
                if let Some(missing) = Minio::missing() {
                    return Err(missing);
                }
                let minio = Minio::start();
                let env = minio.env();
                (
                    Running::Minio { _process: minio },
                    "s3://alluvium/chaos".to_owned(),
                    env,
                )
            }
            StoreChoice::Url(url) => {
                let env = std::env::vars().filter(|(name, _)| name.starts_with("AWS_"));
                (Running::Elsewhere, url.clone(), env.collect())
            }
        };
        let address = endpoint(&env)?;
        Ok(ChaosStore {
            running,
            url,
            env,
            address,
        })
    }

    /// URL as brokers take it.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it can be made to stumble.
    pub(super) fn has_storms(&self) -> bool {
        matches!(self.running, Running::Fake(_))
    }

    /// The variables that lead to it through a proxy.
    pub(super) fn env_through(&self, proxy: SocketAddr) -> Vec<(String, String)> {
        let through = |(name, value): &(String, String)| match name.as_str() {
            ENDPOINT => (name.clone(), format!("http://{proxy}")),
            _ => (name.clone(), value.clone()),
        };
        self.env.iter().map(through).collect()
    }

    /// Replaces the rules of what goes wrong, where that can be done.
    pub(super) fn storm(&self, rules: &[&str]) {
        if let Running::Fake(fake) = &self.running {
            fake.set_fault_texts(rules);
        }
    }

    /// Requests that no correct client sends, where that is known.
    pub(super) fn rejected(&self) -> u64 {
        match &self.running {
            Running::Fake(fake) => fake.counts().rejected,
            _ => 0,
        }
    }

    /// What lies in the bucket, past all proxies.
    ///
    /// # Errors
    /// What the store says.
    pub(super) async fn contents(&self) -> Result<Contents, String> {
        let (store, prefix) = self.client()?;
        let text = |error: object_store::Error| error.to_string();
        let listed: Vec<_> = store.list(Some(&prefix)).try_collect().await.map_err(text)?;
        let manifest = prefix.clone().join("cluster").join("manifest.json");
        let manifest = store.get(&manifest).await.map_err(text)?;
        let manifest = manifest.bytes().await.map_err(text)?;
        let parsed: serde_json::Value =
            serde_json::from_slice(&manifest).map_err(|error| format!("the manifest: {error}"))?;
        let keys = listed.iter().filter_map(|object| {
            let key = object.location.as_ref().strip_prefix(prefix.as_ref())?;
            Some((key.trim_start_matches('/').to_owned(), object.size))
        });
        Ok(Contents {
            objects: keys.collect(),
            manifest_bytes: manifest.len() as u64,
            streams_begun: parsed["next_incarnation"].as_u64().unwrap_or(1).saturating_sub(1),
        })
    }

    fn client(&self) -> Result<(Arc<dyn ObjectStore>, Path), String> {
        let url = url::Url::parse(&self.url).map_err(|error| format!("{}: {error}", self.url))?;
        let bucket = url
            .host_str()
            .ok_or_else(|| format!("{} names no bucket", self.url))?;
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_allow_http(true);
        for (name, value) in &self.env {
            // AWS_ENDPOINT_URL is not one of the names that this builder knows itself.
            if name == ENDPOINT {
                builder = builder.with_endpoint(value);
            } else if let Ok(key) = name.to_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        let store = builder.build().map_err(|error| error.to_string())?;
        Ok((Arc::new(store), Path::from(url.path())))
    }
}

const ENDPOINT: &str = "AWS_ENDPOINT_URL";

fn endpoint(env: &[(String, String)]) -> Result<SocketAddr, String> {
    let found = env.iter().find(|(name, _)| name == ENDPOINT);
    let (_, endpoint) = found.ok_or_else(|| format!("{ENDPOINT} must name the store"))?;
    let rest = endpoint.strip_prefix("http://").ok_or_else(|| {
        format!("{ENDPOINT}={endpoint}: the network to it is cut by a proxy, so it must be plain http://")
    })?;
    let mut addresses = rest
        .trim_end_matches('/')
        .to_socket_addrs()
        .map_err(|error| format!("{endpoint}: {error}"))?;
    addresses
        .next()
        .ok_or_else(|| format!("{endpoint} has no address"))
}

/// What lies in a bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// Keys below the prefix and their bytes.
    pub(super) objects: Vec<(String, u64)>,
    /// Size of the manifest.
    pub(super) manifest_bytes: u64,
    /// Streams that were ever begun, as the manifest counts them.
    pub(super) streams_begun: u64,
}

impl Contents {
    /// Objects by what they are.
    pub(super) fn by_kind(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for (key, _) in &self.objects {
            *counts.entry(kind_of(key)).or_default() += 1;
        }
        counts
    }

    /// Objects of every stream.
    pub(super) fn by_stream(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for (key, _) in &self.objects {
            if let Some(stream) = key.strip_prefix("wal/").and_then(|rest| rest.split('/').next()) {
                *counts.entry(stream).or_default() += 1;
            }
        }
        counts
    }
}

fn kind_of(key: &str) -> &'static str {
    let parts: Vec<&str> = key.split('/').collect();
    match parts[..] {
        ["cluster", "history", ..] => "manifest copies",
        ["cluster", ..] => "cluster",
        ["wal", _, "checkpoint", ..] => "checkpoints",
        ["wal", _, "head.json"] => "heads",
        ["wal", ..] => "segments and seals",
        ["merged", ..] => "merged",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_told_apart_by_their_keys() {
        let keys = [
            "cluster/manifest.json",
            "cluster/history/12.json",
            "wal/ab-1/head.json",
            "wal/ab-1/0000",
            "wal/cd-2/0000",
            "wal/ab-1/checkpoint/7-x",
            "merged/1/3",
        ];
        let contents = Contents {
            objects: keys.iter().map(|key| ((*key).to_owned(), 1)).collect(),
            ..Contents::default()
        };
        let kinds = contents.by_kind();
        assert_eq!(kinds["segments and seals"], 2);
        assert!(
            ["cluster", "manifest copies", "heads", "checkpoints", "merged"]
                .iter()
                .all(|kind| kinds[kind] == 1)
        );
        assert_eq!(contents.by_stream(), BTreeMap::from([("ab-1", 3), ("cd-2", 1)]));
    }

    #[test]
    fn a_store_behind_tls_is_refused_in_words() {
        let env = |value: &str| vec![(ENDPOINT.to_owned(), value.to_owned())];
        assert_eq!(
            endpoint(&env("http://127.0.0.1:9000/")),
            Ok("127.0.0.1:9000".parse().unwrap())
        );
        assert!(
            endpoint(&env("https://s3.amazonaws.com"))
                .unwrap_err()
                .contains("plain http")
        );
        assert!(endpoint(&[]).unwrap_err().contains(ENDPOINT));
    }

    #[test]
    fn sees_what_is_in_the_fake() {
        let choice = StoreChoice::Fake(String::new());
        let store = ChaosStore::start(&choice, 1).unwrap();
        let Running::Fake(fake) = &store.running else {
            panic!("not the fake");
        };
        fake.put_raw("chaos/cluster/manifest.json", r#"{"next_incarnation":4}"#)
            .unwrap();
        fake.put_raw("chaos/wal/a-1/0000", "12345").unwrap();
        fake.put_raw("elsewhere/wal/a-1/0000", "1").unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let contents = runtime.block_on(store.contents()).unwrap();
        assert_eq!((contents.manifest_bytes, contents.streams_begun), (22, 3));
        assert_eq!(contents.by_stream(), BTreeMap::from([("a-1", 1)]));
        assert_eq!(contents.objects.len(), 2);
        assert_eq!(store.rejected(), 0);
        let through = store.env_through("127.0.0.1:1".parse().unwrap());
        assert!(through.contains(&(ENDPOINT.to_owned(), "http://127.0.0.1:1".to_owned())));
    }
}
