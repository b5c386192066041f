//! Requests and bytes by kind, and what they would cost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::request::Kind;

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindCounts {
    /// Understood requests, those that failed or were never answered included.
    pub requests: u64,
    /// Bytes of request bodies.
    pub bytes_in: u64,
    /// Bytes of response bodies.
    pub bytes_out: u64,
    /// Requests that an injected fault hit.
    pub faults: u64,
    /// Answers with status 400 and above, preconditions that did not hold included.
    pub errors: u64,
    /// Most requests in flight at once.
    pub in_flight_max: u64,
    /// Requests in flight now.
    pub in_flight: u64,
}

/// What a fake has been asked since it started or since the last reset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// By kind; kinds that were never asked for are absent.
    pub kinds: BTreeMap<Kind, KindCounts>,
    /// Requests that S3 would refuse as malformed, unsigned or unknown: a mistake of the client.
    pub rejected: u64,
    /// Requests that an outage swallowed.
    pub outage: u64,
    /// IAM actions that S3 would have wanted to be allowed, and how often.
    #[serde(default)]
    pub actions: BTreeMap<String, u64>,
    /// Price of all requests in dollars (S3 Standard, us-east-1).
    pub dollars: f64,
}

impl Counts {
    /// The counts of one kind.
    pub fn of(&self, kind: Kind) -> KindCounts {
        self.kinds.get(&kind).copied().unwrap_or_default()
    }

    /// A request needs these actions to be allowed.
    pub(crate) fn needs(&mut self, actions: &[&str]) {
        for action in actions {
            *self.actions.entry((*action).to_owned()).or_default() += 1;
        }
    }

    pub(crate) fn begin(&mut self, kind: Kind, bytes_in: u64, fault: bool) {
        let counts = self.kinds.entry(kind).or_default();
        counts.requests += 1;
        counts.bytes_in += bytes_in;
        counts.faults += u64::from(fault);
        counts.in_flight += 1;
        counts.in_flight_max = counts.in_flight_max.max(counts.in_flight);
        self.dollars += kind.dollars();
    }

    pub(crate) fn answered(&mut self, kind: Kind, bytes_out: u64, error: bool) {
        let counts = self.kinds.entry(kind).or_default();
        counts.bytes_out += bytes_out;
        counts.errors += u64::from(error);
    }

    pub(crate) fn end(&mut self, kind: Kind) {
        let counts = self.kinds.entry(kind).or_default();
        counts.in_flight = counts.in_flight.saturating_sub(1);
    }

    /// Starts anew; what is in flight stays in flight.
    pub(crate) fn reset(&mut self) {
        let in_flight = |counts: &KindCounts| {
            let in_flight = counts.in_flight;
            KindCounts {
                in_flight,
                in_flight_max: in_flight,
                ..KindCounts::default()
            }
        };
        let kinds = self
            .kinds
            .iter()
            .map(|(kind, counts)| (*kind, in_flight(counts)))
            .collect();
        *self = Counts {
            kinds,
            ..Counts::default()
        };
    }
}
