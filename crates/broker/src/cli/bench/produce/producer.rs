//! A producer: one task that makes batches when they are due, sends them to the leaders of their partitions, and
//! sends them again until they are acknowledged.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use alluvium_log::{Clock, SystemClock};

use super::super::Stop;
use super::super::meter::Meter;
use super::super::payload::{Origin, Payload};
use super::super::schedule::Supply;
use super::super::timer::Alarm;
use super::frame::produce_frame;
use super::link::{BatchKey, Event, Link};
use super::outbox::{Batch, Outbox, Verdict};
use crate::cli::client::{ClientError, Cluster, RETRY_PAUSE, code_name, discover, refused};

/// Timeouts and stops are looked after this often.
const ROUND: Duration = Duration::from_millis(500);
/// While something has failed, whatever waits for its next try is looked after this often.
const TROUBLED_ROUND: Duration = Duration::from_millis(10);

/// What all producers of a run have in common.
#[derive(Clone, Debug)]
pub(in super::super) struct ProducerPlan {
    /// Brokers to begin with.
    pub(in super::super) bootstrap: Vec<Arc<str>>,
    /// Topic to produce to.
    pub(in super::super) topic: String,
    /// As on the wire: -1, 1 or 0.
    pub(in super::super) acks: i16,
    /// Requests of one connection, and batches of one partition, that are not acknowledged.
    pub(in super::super) max_in_flight: usize,
    /// Batches for several partitions share a request up to this size; 0 gives each its own.
    pub(in super::super) request_bytes_max: usize,
    /// How long nothing may be acknowledged after an error.
    pub(in super::super) patience: Duration,
    /// Whether batches go to partitions in turns or all over them.
    pub(in super::super) order: Order,
}

/// How partitions follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Order {
    /// One after the other, a batch each.
    InTurns,
    /// As if by chance.
    Scattered,
}

/// A request that is being put together.
#[derive(Debug, Default)]
struct Draft {
    batches: Vec<BatchKey>,
    bytes: usize,
    largest: usize,
}

impl Draft {
    fn takes(&self, partition: usize, bytes_max: usize) -> bool {
        self.bytes + self.largest <= bytes_max && self.batches.iter().all(|(taken, _)| *taken != partition)
    }
}

type Refresh = Pin<Box<dyn Future<Output = Result<Cluster, ClientError>> + Send>>;

pub(super) struct Producer {
    plan: Arc<ProducerPlan>,
    payload: Arc<Payload>,
    /// Producer id and epoch, or -1.
    identity: (i64, i16),
    supply: Supply,
    meter: Arc<Meter>,
    stop: Stop,
    alarm: Alarm,
    cluster: Cluster,
    outboxes: Vec<Outbox>,
    links: BTreeMap<i32, Link>,
    drafts: BTreeMap<i32, Draft>,
    /// Batches made so far, plus where this producer begins.
    turn: u64,
    /// Since when nothing works, and what was said last.
    failing: Option<(Instant, String)>,
    refresh: Option<Refresh>,
    refresh_at: Option<Instant>,
    events: Vec<Event>,
}

/// What a [`Producer`] is made of.
pub(super) struct ProducerParts {
    pub(super) plan: Arc<ProducerPlan>,
    pub(super) payload: Arc<Payload>,
    pub(super) identity: (i64, i16),
    pub(super) supply: Supply,
    pub(super) meter: Arc<Meter>,
    pub(super) stop: Stop,
    pub(super) alarm: Alarm,
    pub(super) cluster: Cluster,
    /// Links that are connected already.
    pub(super) links: BTreeMap<i32, Link>,
    /// Producers begin at different partitions and bodies.
    pub(super) index: u64,
}

impl Producer {
    pub(super) fn new(parts: ProducerParts) -> Producer {
        let partitions = parts.cluster.leaders.len();
        Producer {
            plan: parts.plan,
            payload: parts.payload,
            identity: parts.identity,
            supply: parts.supply,
            meter: parts.meter,
            stop: parts.stop,
            alarm: parts.alarm,
            cluster: parts.cluster,
            outboxes: (0..partitions).map(|_| Outbox::default()).collect(),
            links: parts.links,
            drafts: BTreeMap::new(),
            turn: parts.index,
            failing: None,
            refresh: None,
            refresh_at: None,
            events: Vec::new(),
        }
    }

    /// Sends all that is to be sent; returns how many records were acknowledged.
    pub(super) async fn run(mut self) -> Result<u64, ClientError> {
        loop {
            let now = Instant::now();
            if self.stop.is_set() {
                self.supply.stop();
            }
            self.compose(now)?;
            if self.supply.is_over(now) && self.outboxes.iter().all(|outbox| outbox.len() == 0) {
                return Ok(self.supply.taken());
            }
            self.check_patience(now)?;
            let wake_at = self.wake_at(now);
            poll_fn(|cx| self.poll(cx, wake_at)).await;
            let now = Instant::now();
            let mut events = std::mem::take(&mut self.events);
            for event in events.drain(..) {
                self.handle(event, now)?;
            }
            self.events = events;
        }
    }

    fn check_patience(&self, now: Instant) -> Result<(), ClientError> {
        let Some((since, why)) = &self.failing else {
            return Ok(());
        };
        if now.saturating_duration_since(*since) <= self.plan.patience {
            return Ok(());
        }
        let waiting: u64 = self.outboxes.iter().map(Outbox::records).sum();
        Err(ClientError::Other(format!(
            "nothing was acknowledged for {} s and {waiting} records wait: {why}; --patience sets how long to wait",
            self.plan.patience.as_secs()
        )))
    }

    /// A link to every leader, after the cluster has changed.
    fn add_links(&mut self, now: Instant) {
        for partition in 0..self.cluster.leaders.len() {
            if let Some((node, address)) = self.cluster.leader(partition)
                && !self.links.contains_key(&node)
            {
                self.links.insert(node, Link::new(address.clone(), now));
            }
        }
    }

    /// Queues requests: first what waits to be sent again, then new batches while there is room and they are due.
    fn compose(&mut self, now: Instant) -> Result<(), ClientError> {
        for partition in 0..self.outboxes.len() {
            while self.outboxes[partition].has_waiting()
                && let Some(node) = self.room_for(partition)
                && let Some(id) = self.outboxes[partition].next_to_send(now)
            {
                self.add_to_draft(node, partition, id, now);
            }
        }
        while let Some(records) = self.supply.ready(now)
            && let Some((partition, node)) = self.choose()
        {
            let id = self.make_batch(partition, records, now)?;
            if let Some(node) = node {
                self.add_to_draft(node, partition, id, now);
            }
        }
        for node in self.drafts.keys().copied().collect::<Vec<_>>() {
            self.send_draft(node, now);
        }
        Ok(())
    }

    /// The partition of the next batch: that whose turn it is, unless it has no room. A batch for a partition that
    /// cannot be reached now is made all the same, so that its records' time counts; it has no node.
    fn choose(&mut self) -> Option<(usize, Option<i32>)> {
        let partitions = self.outboxes.len() as u64;
        let begin = match self.plan.order {
            Order::InTurns => self.turn,
            // The high half of a product with an odd constant looks like chance.
            Order::Scattered => self.turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32,
        };
        for step in 0..partitions {
            let partition = ((begin + step) % partitions) as usize;
            let outbox = &self.outboxes[partition];
            if outbox.len() >= self.plan.max_in_flight {
                continue;
            }
            let link = self
                .cluster
                .leader(partition)
                .and_then(|(node, _)| self.links.get(&node));
            if !link.is_some_and(Link::is_up) {
                self.turn += step + 1;
                return Some((partition, None));
            }
            if outbox.is_flowing()
                && let Some(node) = self.room_for(partition)
            {
                self.turn += step + 1;
                return Some((partition, Some(node)));
            }
        }
        None
    }

    /// The node that a batch of this partition could be sent to now.
    fn room_for(&self, partition: usize) -> Option<i32> {
        let (node, _) = self.cluster.leader(partition)?;
        let link = self.links.get(&node).filter(|link| link.is_up())?;
        let draft = self.drafts.get(&node);
        let takes = draft.is_some_and(|draft| draft.takes(partition, self.plan.request_bytes_max));
        let used = link.in_flight() + usize::from(draft.is_some());
        (takes || used < self.plan.max_in_flight).then_some(node)
    }

    fn make_batch(&mut self, partition: usize, records: u64, now: Instant) -> Result<u64, ClientError> {
        let outbox = &mut self.outboxes[partition];
        let (producer_id, producer_epoch) = self.identity;
        let origin = Origin {
            producer_id,
            producer_epoch,
            base_sequence: if producer_id < 0 {
                -1
            } else {
                outbox.next_sequence()
            },
        };
        let first = self.supply.take(records);
        let ready = self
            .payload
            .batch(first, records, self.turn, origin, SystemClock.now_ms());
        let ready = ready.map_err(|e| ClientError::Other(format!("cannot compress a batch: {e}")))?;
        Ok(outbox.push(Batch {
            first,
            records,
            closed: now,
            ready,
        }))
    }

    fn add_to_draft(&mut self, node: i32, partition: usize, id: u64, now: Instant) {
        let draft = self.drafts.get(&node);
        if draft.is_some_and(|draft| !draft.takes(partition, self.plan.request_bytes_max)) {
            self.send_draft(node, now);
        }
        let outbox = &mut self.outboxes[partition];
        let bytes = outbox.get(id).map_or(0, |batch| batch.ready.body.len());
        outbox.sent(id);
        let draft = self.drafts.entry(node).or_default();
        draft.batches.push((partition, id));
        draft.bytes += bytes;
        draft.largest = draft.largest.max(bytes);
    }

    fn send_draft(&mut self, node: i32, now: Instant) {
        let Some(draft) = self.drafts.remove(&node) else {
            return;
        };
        let link = self.links.get_mut(&node);
        let Some((link, (version, correlation))) = link.and_then(|link| {
            let next = link.next_request()?;
            Some((link, next))
        }) else {
            for (partition, id) in draft.batches {
                self.outboxes[partition].lost(id);
            }
            return;
        };
        let batches: Vec<_> = draft
            .batches
            .iter()
            .filter_map(|(partition, id)| {
                let batch = self.outboxes[*partition].get(*id)?;
                Some((*partition as i32, &batch.ready))
            })
            .collect();
        let acks = self.plan.acks;
        let frame = produce_frame(version, correlation, acks, &self.plan.topic, batches.into_iter());
        link.send(frame, draft.batches, acks != 0, now);
    }

    /// When there may be something to do without an event. A batch that is due but has no room waits for an answer.
    fn wake_at(&self, now: Instant) -> Instant {
        let is_troubled = self.failing.is_some() || self.links.values().any(|link| !link.is_up());
        let round = now + if is_troubled { TROUBLED_ROUND } else { ROUND };
        if self.supply.ready(now).is_some() {
            return round;
        }
        self.supply.next_at(now).map_or(round, |next| next.min(round))
    }

    fn poll(&mut self, cx: &mut Context<'_>, wake_at: Instant) -> Poll<()> {
        let now = Instant::now();
        for link in self.links.values_mut() {
            link.poll(cx, now, &mut self.events);
        }
        self.poll_refresh(cx, now);
        if !self.events.is_empty() {
            return Poll::Ready(());
        }
        self.alarm.poll_until(cx, wake_at)
    }

    fn poll_refresh(&mut self, cx: &mut Context<'_>, now: Instant) {
        if self.refresh.is_none() && self.refresh_at.is_some_and(|at| now >= at) {
            self.refresh_at = None;
            let mut addresses: Vec<Arc<str>> = self.cluster.brokers.values().cloned().collect();
            addresses.extend(self.plan.bootstrap.iter().cloned());
            addresses.dedup();
            let topic = self.plan.topic.clone();
            self.refresh = Some(Box::pin(async move { discover(&addresses, &topic).await }));
        }
        let Some(refresh) = &mut self.refresh else {
            return;
        };
        let Poll::Ready(found) = refresh.as_mut().poll(cx) else {
            return;
        };
        self.refresh = None;
        match found {
            Ok(mut found) if found.leaders.len() >= self.outboxes.len() => {
                found.leaders.truncate(self.outboxes.len());
                if found.leaders.iter().any(Option::is_none) {
                    self.refresh_at = Some(now + RETRY_PAUSE);
                }
                self.cluster = found;
                self.drop_stale_links();
                self.add_links(now);
            }
            // The brokers are starting, or unreachable: what waits for them notices by itself.
            _ => self.refresh_at = Some(now + RETRY_PAUSE),
        }
    }

    /// Forgets links without a connection that lead to nobody who leads, or to an old address.
    fn drop_stale_links(&mut self) {
        let cluster = &self.cluster;
        self.links.retain(|node, link| {
            let leads = cluster.leaders.contains(&Some(*node));
            link.is_up() || (leads && cluster.brokers.get(node) == Some(link.address()))
        });
    }

    fn handle(&mut self, event: Event, now: Instant) -> Result<(), ClientError> {
        match event {
            Event::Connected => {}
            Event::Answered { batches, bytes } => {
                self.meter.add_wire_bytes(now, bytes);
                for (key, code) in batches {
                    self.handle_answer(key, code, now)?;
                }
            }
            Event::Lost { error, batches } => {
                if !error.is_retriable() {
                    return Err(error);
                }
                self.meter.add_error(now, batches.len() as u64);
                for (partition, id) in batches {
                    self.outboxes[partition].lost(id);
                }
                self.failed(error.to_string(), now);
            }
        }
        Ok(())
    }

    fn handle_answer(
        &mut self,
        (partition, id): BatchKey,
        code: i16,
        now: Instant,
    ) -> Result<(), ClientError> {
        match self.outboxes[partition].answered(id, code) {
            Verdict::Acknowledged(batch) => {
                self.failing = None;
                self.meter.alive(now, partition);
                self.meter.add(now, batch.records, batch.ready.record_bytes);
                self.note_latency(&batch, now);
            }
            Verdict::Again => {
                self.meter.add_error(now, 1);
                self.outboxes[partition].pause(now + RETRY_PAUSE);
                self.failed(code_name(code), now);
            }
            Verdict::Refused => {
                let what = format!("a batch for {}-{partition} was refused", self.plan.topic);
                return refused(&what, code);
            }
            Verdict::Stray => {}
        }
        Ok(())
    }

    /// Records whose time was in the warm-up have no latency.
    fn note_latency(&self, batch: &Batch, now: Instant) {
        let measured_from = self.meter.measured_from;
        let latencies = &self.meter.latencies;
        if self.supply.intended(batch.first).is_none() {
            if batch.closed >= measured_from {
                latencies.record_many(now.saturating_duration_since(batch.closed), batch.records);
            }
            return;
        }
        let intended = (batch.first..batch.first + batch.records).filter_map(|n| self.supply.intended(n));
        let measured = intended.filter(|intended| *intended >= measured_from);
        latencies.record(measured.map(|intended| now.saturating_duration_since(intended)));
    }

    fn failed(&mut self, why: String, now: Instant) {
        let since = self.failing.take().map_or(now, |(since, _)| since);
        self.failing = Some((since, why));
        self.refresh_at.get_or_insert(now);
    }
}
