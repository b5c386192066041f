//! When a segment is closed and written: the pure part.
//!
//! A segment goes when it is full, or when fewer than `puts_in_flight` writes are under way, the request budget lasts,
//! and either nothing arrived for [`QUIET`] and no two segments are under way of which one is younger than
//! `interval`, or the oldest append has waited `interval`. So what comes alone goes at once, and what comes steadily goes every `interval`:
//! segments are published in order, and at S3's latency ten small ones under way wait for the slowest of ten.
//!
//! A segment of 1 MiB costs no token, so the budget bounds the bill of a trickle and hardly slows a load.
//! `puts_in_flight` is a limit of small segments; full ones may use twice as many, and beyond that appends gather
//! (memory is bounded elsewhere).

use std::time::Duration;

use tokio::time::Instant;

/// A pause in arrivals after which waiting longer gathers nothing.
pub const QUIET: Duration = Duration::from_millis(2);
/// A segment of this size costs no token: its PUT is at most half a cent per GiB. Larger would be cheaper still, but
/// a producer whose window is full sends no more however long we wait: one Java producer with batches of 256 KiB has
/// 1.25 MiB in flight, and got 8 MB/s instead of 38 once its tokens were spent when only 3.5 MiB were free.
const FREE_BYTES: f64 = 1024.0 * 1024.0;

/// Settings of the policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlushPolicy {
    /// A segment of this many bytes goes at once.
    pub bytes: usize,
    /// The oldest append waits at most this long while the budget lasts.
    pub interval: Duration,
    /// Writes under way at once.
    pub puts_in_flight: usize,
    /// Tokens per second; 0 means there is no budget.
    pub tokens_per_second: f64,
    /// Tokens that gather at most.
    pub token_burst: f64,
}

/// The request budget: a token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tokens {
    held: f64,
    as_of: Instant,
}

/// What is known of the segment that gathers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gathering {
    /// Its bytes.
    pub bytes: usize,
    /// When its first append came.
    pub oldest: Instant,
    /// When its newest append came.
    pub newest: Instant,
}

/// What is known of the segments that went before it and are not published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnderWay {
    /// Writes whose outcome is open.
    pub writes: usize,
    /// When the newest of them went.
    pub newest: Option<Instant>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FlushDecision {
    /// Close it and write it.
    Now,
    /// Look again then, or when something arrives or a write ends.
    At(Instant),
    /// Look again when something arrives or a write ends.
    WhenWriteEnds,
}

impl Tokens {
    /// A full bucket.
    pub fn full(policy: &FlushPolicy, now: Instant) -> Tokens {
        Tokens {
            held: policy.token_burst,
            as_of: now,
        }
    }

    fn refill(&mut self, policy: &FlushPolicy, now: Instant) {
        let passed = now.saturating_duration_since(self.as_of).as_secs_f64();
        self.held = (self.held + passed * policy.tokens_per_second).min(policy.token_burst);
        self.as_of = now;
    }

    /// Pays for a segment.
    pub fn spend(&mut self, policy: &FlushPolicy, bytes: usize, now: Instant) {
        self.refill(policy, now);
        if policy.tokens_per_second > 0.0 {
            self.held = (self.held - cost(bytes)).max(0.0);
        }
    }
}

/// Tokens that a segment of `bytes` costs.
fn cost(bytes: usize) -> f64 {
    (1.0 - bytes as f64 / FREE_BYTES).max(0.0)
}

impl FlushPolicy {
    /// Decides about the gathering segment.
    pub fn decide(
        &self,
        gathering: Gathering,
        under_way: UnderWay,
        tokens: Tokens,
        now: Instant,
    ) -> FlushDecision {
        let full = gathering.bytes >= self.bytes;
        if full && under_way.writes < self.puts_in_flight * 2 {
            return FlushDecision::Now;
        }
        if under_way.writes >= self.puts_in_flight {
            return FlushDecision::WhenWriteEnds;
        }
        // Not with one under way: a producer whose window is full has sent its first batch in that one, all others
        // in this one, and nothing more comes.
        let newest = under_way.newest.filter(|_| under_way.writes > 1);
        let paced = newest.map_or(now, |newest| newest + self.interval);
        let due = (gathering.newest + QUIET)
            .max(paced)
            .min(gathering.oldest + self.interval);
        let due = due.max(self.token_at(tokens, cost(gathering.bytes), now));
        if due <= now {
            FlushDecision::Now
        } else {
            FlushDecision::At(due)
        }
    }

    /// When `cost` tokens will be there.
    fn token_at(&self, tokens: Tokens, cost: f64, now: Instant) -> Instant {
        if self.tokens_per_second <= 0.0 {
            return now;
        }
        let mut tokens = tokens;
        tokens.refill(self, now);
        // A burst below one token must not wait for ever.
        let missing = cost.min(self.token_burst) - tokens.held;
        // Round up to whole milliseconds: a timer that fires early would only look again.
        let wait = (missing.max(0.0) / self.tokens_per_second * 1000.0).ceil();
        now + Duration::from_millis(wait.min(3_600_000.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S3: FlushPolicy = FlushPolicy {
        bytes: 4 << 20,
        interval: Duration::from_millis(80),
        puts_in_flight: 8,
        tokens_per_second: 4.0,
        token_burst: 240.0,
    };
    const EMBEDDED: FlushPolicy = FlushPolicy {
        interval: Duration::ZERO,
        puts_in_flight: 1,
        tokens_per_second: 0.0,
        token_burst: 0.0,
        ..S3
    };

    /// So many writes, of which none is young.
    fn writes(writes: usize) -> UnderWay {
        UnderWay { writes, newest: None }
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_segment_goes_at_once_and_a_small_one_when_it_is_quiet_or_due() {
        let t0 = Instant::now();
        let full = Tokens::full(&S3, t0);
        let g = |bytes, oldest, newest| Gathering {
            bytes,
            oldest: t0 + ms(oldest),
            newest: t0 + ms(newest),
        };
        assert_eq!(
            S3.decide(g(4 << 20, 0, 0), writes(7), full, t0),
            FlushDecision::Now
        );
        assert_eq!(
            S3.decide(g(4 << 20, 0, 0), writes(15), full, t0),
            FlushDecision::Now
        );
        assert_eq!(
            S3.decide(g(4 << 20, 0, 0), writes(16), full, t0),
            FlushDecision::WhenWriteEnds
        );
        assert_eq!(
            S3.decide(g(100, 0, 0), writes(0), full, t0),
            FlushDecision::At(t0 + ms(2))
        );
        assert_eq!(
            S3.decide(g(100, 0, 0), writes(0), full, t0 + ms(2)),
            FlushDecision::Now
        );
        assert_eq!(
            S3.decide(g(100, 0, 79), writes(0), full, t0 + ms(79)),
            FlushDecision::At(t0 + ms(80))
        );
        assert_eq!(
            S3.decide(g(100, 0, 80), writes(0), full, t0 + ms(80)),
            FlushDecision::Now
        );
        assert_eq!(
            S3.decide(g(100, 0, 0), writes(8), full, t0 + ms(500)),
            FlushDecision::WhenWriteEnds
        );
    }

    #[tokio::test(start_paused = true)]
    async fn embedded_flushes_at_once_when_idle_and_gathers_behind_a_write() {
        let t0 = Instant::now();
        let g = Gathering {
            bytes: 100,
            oldest: t0,
            newest: t0,
        };
        let none = Tokens::full(&EMBEDDED, t0);
        assert_eq!(EMBEDDED.decide(g, writes(0), none, t0), FlushDecision::Now);
        assert_eq!(
            EMBEDDED.decide(g, writes(1), none, t0),
            FlushDecision::WhenWriteEnds
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_steadily_goes_every_interval_and_what_comes_alone_at_once() {
        let t0 = Instant::now();
        let g = |oldest, newest| Gathering {
            bytes: 1000,
            oldest: t0 + ms(oldest),
            newest: t0 + ms(newest),
        };
        let went = |writes| UnderWay {
            writes,
            newest: Some(t0),
        };
        let mut tokens = Tokens::full(&S3, t0);
        tokens.spend(&S3, 1000, t0);
        // One every 10 ms: quiet after each of them, and yet the third waits for the interval.
        assert_eq!(
            S3.decide(g(10, 10), went(2), tokens, t0 + ms(12)),
            FlushDecision::At(t0 + ms(80))
        );
        assert_eq!(
            S3.decide(g(10, 70), went(2), tokens, t0 + ms(79)),
            FlushDecision::At(t0 + ms(80))
        );
        assert_eq!(
            S3.decide(g(10, 70), went(2), tokens, t0 + ms(80)),
            FlushDecision::Now
        );
        assert_eq!(
            S3.decide(g(10, 10), went(1), tokens, t0 + ms(12)),
            FlushDecision::Now
        );
        assert_eq!(
            S3.decide(g(10, 10), went(0), tokens, t0 + ms(12)),
            FlushDecision::Now
        );
        // The next one after a pause.
        assert_eq!(
            S3.decide(g(100, 100), went(1), tokens, t0 + ms(100)),
            FlushDecision::At(t0 + ms(102))
        );
        assert_eq!(
            S3.decide(g(100, 100), went(1), tokens, t0 + ms(102)),
            FlushDecision::Now
        );
        let mut none = Tokens::full(&EMBEDDED, t0);
        none.spend(&EMBEDDED, 1000, t0);
        assert_eq!(EMBEDDED.decide(g(0, 0), went(0), none, t0), FlushDecision::Now);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_held_to_the_budget_and_a_load_is_not() {
        // One small append every 10 ms for an hour of virtual time.
        let (t0, mut flushed, mut tokens) = (Instant::now(), 0u32, Tokens::full(&S3, Instant::now()));
        let mut gathering: Option<Gathering> = None;
        for tick in 0..360_000u64 {
            let now = t0 + ms(tick * 10);
            let g = gathering.get_or_insert(Gathering {
                bytes: 0,
                oldest: now,
                newest: now,
            });
            g.bytes += 100;
            g.newest = now;
            if S3.decide(*g, writes(0), tokens, now + ms(2)) == FlushDecision::Now {
                tokens.spend(&S3, g.bytes, now + ms(2));
                gathering = None;
                flushed += 1;
            }
        }
        assert!(
            (14_000..=14_700).contains(&flushed),
            "4 a second and the burst: {flushed}"
        );
        let mut tokens = Tokens { held: 0.0, as_of: t0 };
        tokens.spend(&S3, 4 << 20, t0);
        assert_eq!(tokens.held, 0.0);
        let g = Gathering {
            bytes: 1_100_000,
            oldest: t0,
            newest: t0,
        };
        assert_eq!(
            S3.decide(g, writes(0), tokens, t0 + ms(2)),
            FlushDecision::Now,
            "a nearly full one needs no token"
        );
    }
}
