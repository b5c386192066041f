//! Faults: rules that match requests and say what goes wrong.

use std::str::FromStr;
use std::time::Duration;

use rand::Rng;
use regex_lite::Regex;
use serde::{Deserialize, Serialize};

use super::request::Kind;

/// When an injected failure lets the write take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landing {
    /// Not at all.
    Never,
    /// Before the failure is told: an own success that looks like a failure.
    Applied,
    /// So long after the failure was told, against the state of that moment.
    Late(Duration),
}

/// Status of an injected error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// 500 InternalError.
    Internal,
    /// 503 SlowDown.
    SlowDown,
    /// 409 ConditionalRequestConflict.
    Conflict,
    /// 412 PreconditionFailed.
    PreconditionFailed,
    /// 403 AccessDenied.
    AccessDenied,
    /// 403 RequestTimeTooSkewed: the client's clock is wrong.
    ClockSkew,
    /// 404 NoSuchBucket.
    NoBucket,
    /// 400 ExpiredToken.
    Expired,
    /// 403 InvalidAccessKeyId.
    UnknownKey,
    /// 403 SignatureDoesNotMatch.
    BadSignature,
    /// 301 PermanentRedirect: the bucket is in another region.
    Redirect,
    /// 400 AuthorizationHeaderMalformed: signed for another region than the bucket's.
    WrongRegion,
}

/// What happens to a request that a rule has picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is answered with an error.
    Answer(Injected, Landing),
    /// The connection is cut without an answer.
    Cut(Landing),
    /// There is no answer until the client gives up, or until so long has passed, when the connection is cut.
    Hang(Landing, Option<Duration>),
    /// The connection is cut in the middle of a GET's body.
    Truncate,
    /// One bit of a GET's body is wrong.
    FlipBit,
    /// The request takes so much longer.
    Delay(Duration),
    /// A LIST shows the bucket as it was so long ago.
    StaleList(Duration),
}

/// One rule. Rules are tried in order; the first that fires decides.
#[derive(Clone, Debug)]
pub struct Rule {
    kinds: Vec<Kind>,
    key: Option<Regex>,
    prefix: Option<String>,
    after: u64,
    times: u64,
    probability: f64,
    fault: Fault,
    text: String,
    seen: u64,
    fired: u64,
}

/// A rule as people and scripts write it; also the JSON of `/_fake/faults`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleText {
    /// Kinds joined by `+`, such as `put+get`; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Regular expression that the key must contain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Prefix of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Only the n-th matching request, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nth: Option<u64>,
    /// Skips so many matching requests first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Fires at most so often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// Fires with this probability, 1 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// What happens.
    #[serde(rename = "do")]
    pub action: String,
    /// Milliseconds: how late a `late-` write lands, how long a hang, delay or staleness is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
}

impl FromStr for RuleText {
    type Err = String;

    /// `name=value` pairs, separated by commas.
    fn from_str(text: &str) -> Result<RuleText, String> {
        let mut rule = RuleText::default();
        for pair in text.split(',') {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("'{pair}' is not name=value"))?;
            let value = value.trim();
            let number = || {
                value
                    .parse::<u64>()
                    .map_err(|_| format!("{name}: '{value}' is no whole number"))
            };
            match name.trim() {
                "kind" => rule.kind = Some(value.to_owned()),
                "key" => rule.key = Some(value.to_owned()),
                "prefix" => rule.prefix = Some(value.to_owned()),
                "nth" => rule.nth = Some(number()?),
                "after" => rule.after = Some(number()?),
                "times" => rule.times = Some(number()?),
                "ms" => rule.ms = Some(number()?),
                "probability" => {
                    let bad = |_| format!("probability: '{value}' is no number");
                    rule.probability = Some(value.parse().map_err(bad)?);
                }
                "do" => rule.action = value.to_owned(),
                other => {
                    return Err(format!(
                        "unknown name '{other}'; known: kind, key, prefix, nth, after, times, probability, do, ms"
                    ));
                }
            }
        }
        Ok(rule)
    }
}

impl TryFrom<RuleText> for Rule {
    type Error = String;

    fn try_from(rule: RuleText) -> Result<Rule, String> {
        let text = serde_json::to_string(&rule).map_err(|error| error.to_string())?;
        let kinds = match &rule.kind {
            None => Vec::new(),
            Some(names) => names.split('+').map(kind).collect::<Result<_, _>>()?,
        };
        let key = rule
            .key
            .as_deref()
            .map(Regex::new)
            .transpose()
            .map_err(|error| format!("key: {error}"))?;
        let probability = rule.probability.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&probability) {
            return Err(format!("probability {probability} is outside 0 to 1"));
        }
        let (after, times) = match rule.nth {
            None => (rule.after.unwrap_or(0), rule.times.unwrap_or(u64::MAX)),
            Some(0) => return Err("nth counts from 1".to_owned()),
            Some(_) if rule.after.is_some() || rule.times.is_some() => {
                return Err("nth goes without after and times".to_owned());
            }
            Some(nth) => (nth - 1, 1),
        };
        let fault = fault(&rule.action, rule.ms)?;
        let once = rule.nth.is_some();
        // The n-th request is one certain request: later ones must not get the chance that it missed.
        if once && probability < 1.0 {
            return Err("nth goes without probability".to_owned());
        }
        Ok(Rule {
            kinds,
            key,
            prefix: rule.prefix,
            after,
            times,
            probability,
            fault,
            text,
            seen: 0,
            fired: 0,
        })
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Rule, String> {
        text.parse::<RuleText>()?
            .try_into()
            .map_err(|error: String| format!("'{text}': {error}"))
    }
}

fn kind(name: &str) -> Result<Kind, String> {
    Kind::ALL
        .into_iter()
        .find(|kind| kind.name() == name.trim())
        .ok_or_else(|| {
            format!(
                "unknown kind '{name}'; known: {}",
                Kind::ALL.map(Kind::name).join(", ")
            )
        })
}

fn fault(action: &str, ms: Option<u64>) -> Result<Fault, String> {
    let wait = ms.map(Duration::from_millis);
    let needs_ms = || wait.ok_or_else(|| format!("'{action}' needs ms=..."));
    let (landing, failure) = if let Some(failure) = action.strip_prefix("applied-then-") {
        (Landing::Applied, failure)
    } else if let Some(failure) = action.strip_prefix("late-") {
        (Landing::Late(needs_ms()?), failure)
    } else {
        (Landing::Never, action)
    };
    let plain = landing == Landing::Never;
    let fault = match failure {
        "500" => Fault::Answer(Injected::Internal, landing),
        "503" => Fault::Answer(Injected::SlowDown, landing),
        "409" => Fault::Answer(Injected::Conflict, landing),
        "412" => Fault::Answer(Injected::PreconditionFailed, landing),
        "403" => Fault::Answer(Injected::AccessDenied, landing),
        "skew" => Fault::Answer(Injected::ClockSkew, landing),
        "no-bucket" => Fault::Answer(Injected::NoBucket, landing),
        "expired" => Fault::Answer(Injected::Expired, landing),
        "unknown-key" => Fault::Answer(Injected::UnknownKey, landing),
        "bad-signature" => Fault::Answer(Injected::BadSignature, landing),
        "redirect" => Fault::Answer(Injected::Redirect, landing),
        "region" => Fault::Answer(Injected::WrongRegion, landing),
        "cut" => Fault::Cut(landing),
        // The time of a late hang is that of its landing.
        "hang" => Fault::Hang(
            landing,
            if matches!(landing, Landing::Late(_)) {
                None
            } else {
                wait
            },
        ),
        "truncate" if plain => Fault::Truncate,
        "flip" if plain => Fault::FlipBit,
        "delay" if plain => Fault::Delay(needs_ms()?),
        "stale" if plain => Fault::StaleList(needs_ms()?),
        _ => {
            return Err(format!(
                "unknown do='{action}'; known: 500, 503, 409, 412, 403, skew, no-bucket, expired, unknown-key, \
                 bad-signature, redirect, region, cut, hang (each also as applied-then-... and late-...), truncate, \
                 flip, delay, stale"
            ));
        }
    };
    Ok(fault)
}

impl Rule {
    fn matches(&self, kind: Kind, key: &str) -> bool {
        let applies = match self.fault {
            Fault::Truncate | Fault::FlipBit => kind == Kind::Get,
            Fault::StaleList(_) => kind == Kind::List,
            _ => true,
        };
        applies
            && (self.kinds.is_empty() || self.kinds.contains(&kind))
            && self
                .prefix
                .as_deref()
                .is_none_or(|prefix| key.starts_with(prefix))
            && self.key.as_ref().is_none_or(|regex| regex.is_match(key))
    }

    /// How often the rule has fired.
    pub fn fired(&self) -> u64 {
        self.fired
    }

    /// The rule as JSON.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The fault of this request, if a rule fires. For a LIST, `key` is the prefix.
pub(crate) fn decide(rules: &mut [Rule], kind: Kind, key: &str, random: &mut impl Rng) -> Option<Fault> {
    let mut decided = None;
    for rule in rules.iter_mut().filter(|rule| rule.matches(kind, key)) {
        rule.seen += 1;
        let due = decided.is_none() && rule.seen > rule.after && rule.fired < rule.times;
        if due && (rule.probability >= 1.0 || random.random_bool(rule.probability)) {
            rule.fired += 1;
            decided = Some(rule.fault);
        }
    }
    decided
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn fired(rules: &mut [Rule], requests: &[(Kind, &str)]) -> Vec<bool> {
        let mut random = rand::rngs::StdRng::seed_from_u64(1);
        requests
            .iter()
            .map(|(kind, key)| decide(rules, *kind, key, &mut random).is_some())
            .collect()
    }

    #[test]
    fn picks_by_kind_key_and_count() {
        let mut nth = rules(&["kind=put,prefix=wal/,nth=2,do=500"]);
        let put = (Kind::Put, "wal/a/1");
        let requests = [put, (Kind::Get, "wal/a/1"), (Kind::Put, "head"), put, put];
        assert_eq!(fired(&mut nth, &requests), [false, false, false, true, false]);
        let mut some = rules(&["kind=put+get,key=^wal/.*/[0-9]+$,after=1,times=2,do=cut"]);
        assert_eq!(
            fired(&mut some, &[put, put, (Kind::Get, "wal/a/2"), put]),
            [false, true, true, false]
        );
        let mut flip = rules(&["do=flip"]);
        assert_eq!(fired(&mut flip, &[put, (Kind::Get, "k")]), [false, true]);
    }

    #[test]
    fn the_first_rule_that_fires_decides() {
        let mut both = rules(&["times=1,do=500", "do=cut"]);
        let mut random = rand::rngs::StdRng::seed_from_u64(1);
        let mut next = || decide(&mut both, Kind::Put, "k", &mut random);
        assert_eq!(next(), Some(Fault::Answer(Injected::Internal, Landing::Never)));
        assert_eq!(next(), Some(Fault::Cut(Landing::Never)));
    }

    #[test]
    fn probability_follows_the_seed() {
        let requests = vec![(Kind::Put, "k"); 10_000];
        let run = || fired(&mut rules(&["probability=0.1,do=503"]), &requests);
        let first = run();
        assert_eq!(first, run());
        let count = first.iter().filter(|fired| **fired).count();
        assert!((850..1150).contains(&count), "{count}");
    }

    #[test]
    fn says_what_is_wrong_with_a_rule() {
        for (text, part) in [
            ("kind=put", "unknown do=''"),
            ("do=explode", "known: 500"),
            ("do=late-500", "needs ms"),
            ("do=delay", "needs ms"),
            ("do=applied-then-flip,ms=1", "unknown do="),
            ("kind=post,do=500", "unknown kind 'post'"),
            ("nth=0,do=500", "counts from 1"),
            ("nth=1,times=3,do=500", "without after"),
            ("nth=1,probability=0.5,do=500", "without probability"),
            ("probability=2,do=500", "outside 0 to 1"),
            ("colour=red,do=500", "unknown name 'colour'"),
            ("key=(,do=500", "key:"),
        ] {
            let error = text.parse::<Rule>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
