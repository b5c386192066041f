//! How long the fake takes to answer.

use std::str::FromStr;
use std::time::Duration;

use rand::Rng;

/// The 99th percentile of the standard normal distribution.
const NORMAL_P99: f64 = 2.326_348;
/// Its 99.9th percentile.
const NORMAL_P999: f64 = 3.090_232;

/// Latency of one kind of request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Latency {
    /// As fast as the machine answers.
    #[default]
    None,
    /// Always the same.
    Fixed(Duration),
    /// Log-normal with this median and 99th percentile, as object stores show it.
    LogNormal {
        /// Median.
        p50: Duration,
        /// 99th percentile.
        p99: Duration,
    },
    /// Log-normal up to the 99th percentile, with a tail of its own through the 99.9th: what was measured of a
    /// store seldom fits one log-normal in all three.
    Tailed {
        /// Median.
        p50: Duration,
        /// 99th percentile.
        p99: Duration,
        /// 99.9th percentile.
        p999: Duration,
    },
}

impl Latency {
    /// One draw.
    pub fn sample(&self, random: &mut impl Rng) -> Duration {
        match *self {
            Latency::None => Duration::ZERO,
            Latency::Fixed(time) => time,
            Latency::LogNormal { p50, p99 } => {
                let (p50, p99) = (p50.as_secs_f64(), p99.as_secs_f64());
                let sigma = (p99 / p50).ln() / NORMAL_P99;
                seconds(p50 * (sigma * normal(random)).exp())
            }
            Latency::Tailed { p50, p99, p999 } => {
                let (p50, p99, p999) = (p50.as_secs_f64(), p99.as_secs_f64(), p999.as_secs_f64());
                let normal = normal(random);
                let sigma = (p99 / p50).ln() / NORMAL_P99;
                let tail = (p999 / p99).ln() / (NORMAL_P999 - NORMAL_P99);
                let beyond = (normal - NORMAL_P99).max(0.0);
                seconds(p50 * (sigma * (normal - beyond) + tail * beyond).exp())
            }
        }
    }
}

/// One draw from the standard normal distribution (Box-Muller).
fn normal(random: &mut impl Rng) -> f64 {
    // 1 - u keeps the logarithm away from zero.
    let (u, v): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// A time that a request may really take.
fn seconds(time: f64) -> Duration {
    Duration::from_secs_f64(time.min(600.0))
}

impl FromStr for Latency {
    type Err = String;

    /// `20` is fixed, `100/195` is log-normal by p50/p99, `100/195/274` names the 99.9th percentile too;
    /// milliseconds.
    fn from_str(text: &str) -> Result<Latency, String> {
        let millis = |text: &str| -> Result<Duration, String> {
            let number: f64 = text
                .trim()
                .parse()
                .map_err(|_| format!("'{text}' is no number of milliseconds"))?;
            if !(0.0..=600_000.0).contains(&number) {
                return Err(format!("'{text}' is outside 0 to 600000 ms"));
            }
            Ok(Duration::from_secs_f64(number / 1_000.0))
        };
        match text.split_once('/') {
            None => match millis(text)? {
                Duration::ZERO => Ok(Latency::None),
                time => Ok(Latency::Fixed(time)),
            },
            Some((p50, rest)) => {
                let (p99, p999) = match rest.split_once('/') {
                    None => (rest, None),
                    Some((p99, p999)) => (p99, Some(millis(p999)?)),
                };
                let (p50, p99) = (millis(p50)?, millis(p99)?);
                if p50.is_zero() || p99 < p50 || p999.is_some_and(|p999| p999 < p99) {
                    return Err(format!(
                        "'{text}': p50 must be above 0 and no percentile below the one before"
                    ));
                }
                Ok(match p999 {
                    None => Latency::LogNormal { p50, p99 },
                    Some(p999) => Latency::Tailed { p50, p99, p999 },
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_log_normal_meets_its_percentiles() {
        let latency: Latency = "100/195".parse().unwrap();
        let mut random = rand::rngs::StdRng::seed_from_u64(7);
        let mut drawn: Vec<f64> = (0..20_000)
            .map(|_| latency.sample(&mut random).as_secs_f64() * 1e3)
            .collect();
        drawn.sort_by(f64::total_cmp);
        assert!((98.0..102.0).contains(&drawn[10_000]), "p50 {}", drawn[10_000]);
        assert!((185.0..205.0).contains(&drawn[19_800]), "p99 {}", drawn[19_800]);
    }

    #[test]
    fn a_tail_meets_all_three_percentiles() {
        for (text, expected) in [
            ("100/195/274", [100.0, 195.0, 274.0]),
            ("63/78/118", [63.0, 78.0, 118.0]),
        ] {
            let latency: Latency = text.parse().unwrap();
            let mut random = rand::rngs::StdRng::seed_from_u64(7);
            let mut drawn: Vec<f64> = (0..200_000)
                .map(|_| latency.sample(&mut random).as_secs_f64() * 1e3)
                .collect();
            drawn.sort_by(f64::total_cmp);
            for (at, expected) in [100_000, 198_000, 199_800].into_iter().zip(expected) {
                let off = (drawn[at] / expected - 1.0).abs();
                assert!(off < 0.05, "{text}: {} instead of {expected}", drawn[at]);
            }
        }
    }

    #[test]
    fn reads_its_text_form() {
        assert_eq!("0".parse(), Ok(Latency::None));
        assert_eq!("2.5".parse(), Ok(Latency::Fixed(Duration::from_micros(2500))));
        for bad in [
            "", "x", "-1", "100/50", "0/5", "1/3/2", "1/2/3/4", "1/2/", "inf", "NaN",
        ] {
            assert!(bad.parse::<Latency>().is_err(), "{bad}");
        }
    }
}
