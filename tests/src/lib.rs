//! What the tests of Alluvium share: a strict S3 in memory, a harness that runs the real binary, a raw Kafka
//! client and record batches of every kind of wrong. And what the benchmarks measure with.

pub mod batches;
pub mod benchmarks;
pub mod broker;
pub mod chaos;
pub mod compatibility;
pub mod installed;
pub mod kafka;
pub mod kubelet;
pub mod minio;
pub mod prometheus;
pub mod s3_fake;
pub mod wire;
