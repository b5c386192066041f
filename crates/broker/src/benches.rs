//! Doors for the benchmarks in `benches/`, which see only what is public. Not part of the interface.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_wire::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_wire::{OutboundFrameLimits, ProduceRequest, encode_request};
use kafka_wire_core::{ApiVersion, StrBytes};
use tokio::runtime::Runtime;

use crate::budget::ByteBudget;
use crate::frame::{ConnectionLimits, FrameBudgets, FrameReader};
use crate::handlers::fetch::read_plan::{Candidate, Limits, is_enough, plan};
use crate::metrics::BudgetMetrics;
use crate::protocol::{decode_body, decode_header};

const PRODUCE_VERSION: i16 = 9;

/// A Produce request as a connection reads and decodes it.
pub struct FrameBench {
    frame: Bytes,
    runtime: Runtime,
    limits: ConnectionLimits,
    budgets: FrameBudgets,
}

impl FrameBench {
    /// A request with this batch for one partition.
    pub fn produce(batch: &Bytes) -> FrameBench {
        let mut partition = PartitionProduceData::default();
        partition.records = Some(batch.clone());
        let mut topic = TopicProduceData::default();
        topic.name = StrBytes::from("a-topic");
        topic.partition_data.push(partition);
        let mut request = ProduceRequest::default();
        request.acks = -1;
        request.topic_data.push(topic);
        let mut frame = BytesMut::new();
        let version = ApiVersion::new(PRODUCE_VERSION);
        let limits = OutboundFrameLimits::new(1 << 27);
        encode_request(&mut frame, 1, Some("bench".into()), &request, version, limits)
            .unwrap_or_else(|error| panic!("a request cannot be encoded: {error}"));
        let budget = ByteBudget::new(1 << 28, BudgetMetrics::unregistered());
        FrameBench {
            frame: frame.freeze(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap_or_else(|error| panic!("no runtime for a benchmark: {error}")),
            limits: ConnectionLimits::new(1 << 27, Duration::from_secs(600)),
            budgets: FrameBudgets {
                produce: budget.clone(),
                other: budget,
            },
        }
    }

    /// Size of the request.
    pub fn bytes(&self) -> usize {
        self.frame.len()
    }

    /// Reads and decodes it once; the bytes of records in it.
    pub fn run(&self) -> Option<usize> {
        let mut reader = FrameReader::new(&self.frame[..], self.limits.clone(), self.budgets.clone());
        let read = async {
            reader.wait_for_request(Duration::MAX).await?;
            reader.read_request().await
        };
        let frame = self.runtime.block_on(read).ok()?;
        let (_, body) = decode_header(frame.bytes, true).ok()?;
        let request: ProduceRequest = decode_body(body, PRODUCE_VERSION).ok()?;
        Some(
            request
                .topic_data
                .first()?
                .partition_data
                .first()?
                .records
                .as_ref()?
                .len(),
        )
    }
}

/// The plan of a Fetch of so many partitions.
pub struct FetchPlan(Vec<Option<Candidate>>);

impl FetchPlan {
    /// Every tenth partition has something.
    pub fn new(partitions: usize) -> FetchPlan {
        let one = |n: usize| {
            Some(Candidate {
                readable: if n.is_multiple_of(10) { 3000 } else { 0 },
                max_bytes: 1 << 20,
            })
        };
        FetchPlan((0..partitions).map(one).collect())
    }

    /// Decides and plans once; the partitions that are read.
    pub fn run(&self) -> usize {
        let limits = Limits {
            max_bytes: 50 << 20,
            min_bytes: 1,
        };
        if is_enough(&self.0, limits) {
            plan(&self.0, limits).len()
        } else {
            0
        }
    }
}
