//! Whether one peer is dead: a judge that is told what an observer sees, and knows no clock but the times it is
//! told.
//!
//! Being wrong costs no data, since a seal fences a broker that was only thought dead; it costs a failover that
//! nobody needed, and if two brokers are wrong about each other, one after the other for ever. So there are just
//! two ways to be dead:
//!
//! * The peer answered us before, and now its machine refuses connections, twice in a row: no process listens
//!   there any more. That takes a second or two.
//! * It is silent, and nothing that it would write into the bucket appears there either. Silence alone says only
//!   that the network between the two of us is broken.
//!
//! The second judgement is one about time, and ours may be the clock that stood still: while this process was
//! frozen, or its own requests to the store failed, nothing is learnt about anybody else.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::Seq;

/// How patient a judge is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LivenessLimits {
    /// Time between two pings of a peer that answers.
    pub ping_interval: Duration,
    /// Time from a refused connection to the next ping: long enough for a listener that is being opened anew.
    pub refused_interval: Duration,
    /// Connections refused in a row that prove the death of a peer that answered before.
    pub refusals: u32,
    /// Without an answer for so long, the peer's objects in the bucket are looked at.
    pub silence: Duration,
    /// Time between two looks at them.
    pub look_interval: Duration,
    /// Without a sign of life there for so long, the peer is dead. Longer than the time between two heartbeats.
    pub standstill: Duration,
    /// After a sign of life in the bucket they are not looked at for so long; each further time twice as long.
    pub back_off: Duration,
    /// The longest such time.
    pub back_off_max: Duration,
    /// If the judge was told nothing for so long, the observer itself did not run.
    pub frozen: Duration,
}

impl Default for LivenessLimits {
    fn default() -> Self {
        LivenessLimits {
            ping_interval: Duration::from_secs(1),
            refused_interval: Duration::from_millis(500),
            refusals: 2,
            silence: Duration::from_secs(3),
            look_interval: Duration::from_secs(1),
            standstill: Duration::from_secs(12),
            back_off: Duration::from_secs(5),
            back_off_max: Duration::from_secs(60),
            frozen: Duration::from_secs(2),
        }
    }
}

/// What an observer sees of a peer, or of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer answered a ping.
    Answered,
    /// Another broker start answered at the peer's address.
    ///
    /// That is no proof of death. A start seals its predecessor at that address itself, before it answers anybody;
    /// if there is still a stream to judge, then two brokers advertise one address, and both may be well.
    AnsweredByAnother,
    /// The peer's machine says that nobody listens.
    Refused,
    /// No answer in time.
    NoAnswer,
    /// The peer's head, and where its stream ends, were read.
    Looked {
        /// When reading began: nothing that was read is older.
        asked: Instant,
        /// What the bucket holds.
        sign: Sign,
    },
    /// A request of this process to the store failed.
    StoreFailed,
    /// Nothing, but the observer runs. It must say so more often than `frozen`.
    Tick,
}

/// What a living broker changes in the bucket, sooner or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sign {
    /// The head's heartbeat counter; 0 without a head.
    pub heartbeat: u64,
    /// The head's tip; 0 without a head.
    pub tip: Seq,
    /// The first key of the stream that was found missing.
    pub end: Seq,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Observe on.
    Observe {
        /// When to ping, unless a ping is under way.
        ping_at: Instant,
        /// When to look at head and stream, unless that is under way. `None`: not at all.
        look_at: Option<Instant>,
    },
    /// The peer is dead: take its slots over. If that fails, everything must be seen again before this is said again.
    TakeOver(Death),
}

/// How a peer was found dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// Nobody listens where it answered before.
    Refused {
        /// So many times in a row.
        times: u32,
    },
    /// It neither answers nor writes.
    Standstill {
        /// Time since it answered last, or since we began to ask.
        silent: Duration,
        /// Time in which neither head nor stream changed.
        still: Duration,
    },
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Death::Refused { times } => write!(f, "its address refused connections {times} times in a row"),
            Death::Standstill { silent, still } => write!(
                f,
                "it has not answered for {:.0} s and wrote nothing for {:.0} s",
                silent.as_secs_f64(),
                still.as_secs_f64()
            ),
        }
    }
}

/// The judge of one peer: of one broker start, not of its successor at the same address.
#[derive(Clone, Debug)]
pub struct Judge {
    limits: LivenessLimits,
    /// When it was told something last.
    told: Instant,
    /// Last answer, or where the wait for one began.
    heard: Instant,
    answered_once: bool,
    refusals: u32,
    ping_at: Instant,
    bucket: Bucket,
    /// How long the bucket is left alone after the next sign of life in it.
    back_off: Duration,
}

/// What is done about the bucket.
#[derive(Clone, Copy, Debug)]
enum Bucket {
    /// Nothing, until this time at least and as long as the peer answers.
    Unwatched { until: Instant },
    /// It is watched. Nothing has been seen yet since the watch (re)started.
    Watched { look_at: Instant },
    /// This was seen at first, and nothing else since.
    Still {
        since: Instant,
        sign: Sign,
        look_at: Instant,
    },
}

impl Judge {
    /// A judge of a peer that has not been heard of yet; the first ping is due.
    pub fn new(limits: LivenessLimits, now: Instant) -> Judge {
        Judge {
            told: now,
            heard: now,
            answered_once: false,
            refusals: 0,
            ping_at: now,
            bucket: Bucket::Unwatched { until: now },
            back_off: limits.back_off,
            limits,
        }
    }

    /// Takes in what happened at `now`, which never goes back.
    pub fn on(&mut self, event: Event, now: Instant) -> Verdict {
        if now.saturating_duration_since(self.told) > self.limits.frozen {
            self.start_again(now);
        }
        self.told = now;
        match event {
            Event::Answered => {
                self.start_again(now);
                self.answered_once = true;
                // If it falls silent now, that is something new.
                self.bucket = Bucket::Unwatched { until: now };
                self.back_off = self.limits.back_off;
                self.ping_at = now + self.limits.ping_interval;
            }
            Event::AnsweredByAnother | Event::NoAnswer => {
                self.refusals = 0;
                self.ping_at = now + self.limits.ping_interval;
            }
            Event::Refused => {
                self.refusals += 1;
                self.ping_at = now + self.limits.refused_interval;
                if self.answered_once && self.refusals >= self.limits.refusals {
                    let times = self.refusals;
                    self.start_again(now);
                    return Verdict::TakeOver(Death::Refused { times });
                }
            }
            Event::Looked { asked, sign } => {
                if let Some(death) = self.looked(asked, sign, now) {
                    self.start_again(now);
                    return Verdict::TakeOver(death);
                }
            }
            Event::StoreFailed => {
                if !matches!(self.bucket, Bucket::Unwatched { .. }) {
                    let look_at = now + self.limits.look_interval;
                    self.bucket = Bucket::Watched { look_at };
                }
            }
            Event::Tick => {}
        }
        if let Bucket::Unwatched { until } = self.bucket
            && now >= until
            && now.saturating_duration_since(self.heard) >= self.limits.silence
        {
            self.bucket = Bucket::Watched { look_at: now };
        }
        let look_at = match self.bucket {
            Bucket::Unwatched { .. } => None,
            Bucket::Watched { look_at } | Bucket::Still { look_at, .. } => Some(look_at),
        };
        Verdict::Observe {
            ping_at: self.ping_at,
            look_at,
        }
    }

    /// Forgets how long things have lasted. How often the peer was wrongly suspected is not forgotten.
    fn start_again(&mut self, now: Instant) {
        self.heard = now;
        self.refusals = 0;
        let until = match self.bucket {
            Bucket::Unwatched { until } => until,
            Bucket::Watched { .. } | Bucket::Still { .. } => now,
        };
        self.bucket = Bucket::Unwatched { until };
    }

    fn looked(&mut self, asked: Instant, sign: Sign, now: Instant) -> Option<Death> {
        let look_at = now + self.limits.look_interval;
        match self.bucket {
            // Asked for before an answer came, or before this process was frozen.
            Bucket::Unwatched { .. } => None,
            // Whatever is seen later than now and was not there now has moved.
            Bucket::Watched { .. } => {
                let since = now;
                self.bucket = Bucket::Still { since, sign, look_at };
                None
            }
            Bucket::Still { sign: first, .. } if first != sign => {
                let until = now + self.back_off;
                self.bucket = Bucket::Unwatched { until };
                self.back_off = (self.back_off * 2).min(self.limits.back_off_max);
                None
            }
            Bucket::Still { since, .. } => {
                // What a slow request brought may be as old as the request.
                let still = asked.saturating_duration_since(since);
                self.bucket = Bucket::Still { since, sign, look_at };
                let silent = now.saturating_duration_since(self.heard);
                (still >= self.limits.standstill).then_some(Death::Standstill { silent, still })
            }
        }
    }
}

#[cfg(test)]
mod tests;
