use super::*;

/// An observer that does what its judge says: pings, looks, and tells it twice a second that it runs. Times are
/// milliseconds since its start.
struct Observer<'a> {
    judge: Judge,
    verdict: Verdict,
    start: Instant,
    now: u64,
    /// What a ping brings, and what reading head and stream does: `None` if the store fails.
    ping: Box<dyn FnMut(u64) -> Event + 'a>,
    look: Box<dyn FnMut(u64) -> Option<Sign> + 'a>,
    looks: Vec<u64>,
    pings: Vec<u64>,
}

/// The time that everything takes, but a ping without an answer, which takes a second.
const STEP: u64 = 100;

impl<'a> Observer<'a> {
    fn new(ping: impl FnMut(u64) -> Event + 'a, look: impl FnMut(u64) -> Option<Sign> + 'a) -> Observer<'a> {
        let start = Instant::now();
        let mut judge = Judge::new(LivenessLimits::default(), start);
        Observer {
            verdict: judge.on(Event::Tick, start),
            judge,
            start,
            now: 0,
            ping: Box::new(ping),
            look: Box::new(look),
            looks: vec![],
            pings: vec![],
        }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// Observes until that time, or a death and when it was found.
    fn until(&mut self, end: u64) -> Option<(u64, Death)> {
        let (mut pinging, mut looking) = (None::<(u64, Event)>, None::<u64>);
        while self.now <= end {
            let now = self.at(self.now);
            let mut events = vec![];
            if self.now.is_multiple_of(500) {
                events.push(Event::Tick);
            }
            if let Some((_, event)) = pinging.take_if(|(due, _)| *due <= self.now) {
                events.push(event);
            }
            if let Some(due) = looking.take_if(|due| *due <= self.now) {
                let asked = self.at(due - STEP);
                let found = (self.look)(self.now).map(|sign| Event::Looked { asked, sign });
                events.push(found.unwrap_or(Event::StoreFailed));
            }
            for event in events {
                self.verdict = self.judge.on(event, now);
                if let Verdict::TakeOver(death) = self.verdict {
                    return Some((self.now, death));
                }
            }
            if let Verdict::Observe { ping_at, look_at } = self.verdict {
                if pinging.is_none() && now >= ping_at {
                    self.pings.push(self.now);
                    let event = (self.ping)(self.now);
                    let takes = if event == Event::NoAnswer { 1_000 } else { STEP };
                    pinging = Some((self.now + takes, event));
                }
                if looking.is_none() && look_at.is_some_and(|t| now >= t) {
                    self.looks.push(self.now);
                    looking = Some(self.now + STEP);
                }
            }
            self.now += STEP;
        }
        None
    }
}

fn still() -> Sign {
    Sign {
        heartbeat: 7,
        tip: 100,
        end: 120,
    }
}

/// A head that is written every ten seconds.
fn beating(now: u64) -> Option<Sign> {
    Some(Sign {
        heartbeat: now / 10_000,
        ..still()
    })
}

fn unasked(now: u64) -> Option<Sign> {
    panic!("nobody should have looked at {now} ms");
}

#[test]
fn one_that_answers_is_pinged_every_second_and_its_head_is_left_alone() {
    let mut o = Observer::new(|_| Event::Answered, unasked);
    assert_eq!(o.until(60_000), None);
    assert!((54..=56).contains(&o.pings.len()), "{:?}", o.pings);
}

#[test]
fn two_refusals_after_an_answer_are_death_at_once() {
    let mut o = Observer::new(
        |now| {
            if now < 5_000 {
                Event::Answered
            } else {
                Event::Refused
            }
        },
        unasked,
    );
    let (when, death) = o.until(60_000).expect("dead");
    assert_eq!(death, Death::Refused { times: 2 });
    assert!(when <= 6_800, "{when}");
    assert!(death.to_string().contains("refused connections 2 times"));
}

#[test]
fn refusals_count_only_in_a_row() {
    let mut ping = 0;
    let mut o = Observer::new(
        |_| {
            ping += 1;
            if ping % 2 == 0 {
                Event::Refused
            } else {
                Event::Answered
            }
        },
        unasked,
    );
    assert_eq!(o.until(60_000), None);
    // A time-out between two of them is no refusal either.
    let mut ping = 0;
    let mut o = Observer::new(
        |now| {
            ping += 1;
            match ping % 2 {
                _ if now < 2_000 => Event::Answered,
                0 => Event::Refused,
                _ => Event::NoAnswer,
            }
        },
        beating,
    );
    assert_eq!(o.until(60_000), None);
}

#[test]
fn refusals_of_one_that_never_answered_are_silence() {
    let mut o = Observer::new(|_| Event::Refused, beating);
    assert_eq!(o.until(300_000), None);
    assert!(!o.looks.is_empty());
    let mut o = Observer::new(|_| Event::Refused, |_| Some(still()));
    let (when, death) = o.until(60_000).expect("dead");
    assert!(matches!(death, Death::Standstill { .. }), "{death:?}");
    assert!((15_000..18_000).contains(&when), "{when}");
}

#[test]
fn silence_and_standstill_together_are_death() {
    let silent_from = 20_000;
    let mut o = Observer::new(
        move |now| {
            if now < silent_from {
                Event::Answered
            } else {
                Event::NoAnswer
            }
        },
        |_| Some(still()),
    );
    let (when, death) = o.until(120_000).expect("dead");
    let Death::Standstill { silent, still } = death else {
        panic!("{death:?}");
    };
    // Three seconds of silence and twelve of standstill, counted from what was seen.
    assert!(
        (silent_from + 13_000..silent_from + 17_500).contains(&when),
        "{when}"
    );
    assert!(
        still >= Duration::from_secs(12) && silent >= Duration::from_secs(15),
        "{death:?}"
    );
    assert!(o.looks[0] >= silent_from + 2_000, "{:?}", o.looks);
    assert!(death.to_string().contains("and wrote nothing for 1"), "{death}");
}

#[test]
fn any_sign_of_life_in_the_bucket_is_life() {
    let moves: [fn(u64) -> Sign; 3] = [
        |now| Sign {
            heartbeat: now / 11_000,
            ..still()
        },
        |now| Sign {
            tip: now / 11_000,
            ..still()
        },
        |now| Sign {
            end: now / 11_000,
            ..still()
        },
    ];
    for sign in moves {
        let mut o = Observer::new(|_| Event::NoAnswer, move |now| Some(sign(now)));
        assert_eq!(o.until(600_000), None);
    }
}

#[test]
fn the_bucket_is_looked_at_less_and_less_while_there_is_life_in_it() {
    let mut o = Observer::new(|_| Event::NoAnswer, beating);
    assert_eq!(o.until(600_000), None);
    // Each watch ends with the next heartbeat; pauses between watches double up to a minute.
    let pauses: Vec<u64> = o
        .looks
        .windows(2)
        .map(|w| w[1] - w[0])
        .filter(|p| *p > 2_000)
        .collect();
    assert!((4_500..6_000).contains(&pauses[0]), "{pauses:?}");
    assert!(pauses.iter().all(|p| *p < 62_000), "{pauses:?}");
    assert!(pauses.iter().filter(|p| **p > 58_000).count() >= 5, "{pauses:?}");
    assert!(o.looks.len() < 160, "{}", o.looks.len());
}

#[test]
fn an_answer_ends_the_back_off() {
    // Cut off for four minutes, reachable for a moment, then gone for good.
    let mut o = Observer::new(
        |now| {
            if (240_000..250_000).contains(&now) {
                Event::Answered
            } else {
                Event::NoAnswer
            }
        },
        |now| beating(now.min(250_000)),
    );
    let (when, _) = o.until(600_000).expect("dead");
    assert!(when < 250_000 + 17_500, "{when}");
}

#[test]
fn one_that_dies_while_it_cannot_be_reached_is_found_dead_after_the_back_off() {
    let mut o = Observer::new(|_| Event::NoAnswer, |now| beating(now.min(250_000)));
    let (when, _) = o.until(600_000).expect("dead");
    assert!(when < 250_000 + 60_000 + 15_000, "{when}");
}

#[test]
fn two_that_cannot_see_each_other_let_each_other_live() {
    for ping in [Event::NoAnswer, Event::Refused] {
        for met_before in [false, true] {
            if ping == Event::Refused && met_before {
                continue; // That is how a dead process looks.
            }
            let seen = move |now| {
                if met_before && now < 10_000 {
                    Event::Answered
                } else {
                    ping
                }
            };
            let mut a = Observer::new(seen, beating);
            let mut b = Observer::new(seen, |now| beating(now + 5_000));
            for second in 1..600 {
                assert_eq!(a.until(second * 1_000), None);
                assert_eq!(b.until(second * 1_000), None);
            }
        }
    }
}

#[test]
fn an_observer_that_was_frozen_begins_again() {
    let mut o = Observer::new(
        |now| {
            if now < 5_000 {
                Event::Answered
            } else {
                Event::NoAnswer
            }
        },
        |_| Some(still()),
    );
    assert_eq!(o.until(18_000), None);
    assert!(!o.looks.is_empty());
    // Frozen for a minute: long enough for anything, and proof of nothing.
    o.now += 60_000;
    let thawed = o.now;
    let looks = o.looks.len();
    assert_eq!(o.until(thawed + 14_500), None);
    // One look was due before; what it brings means nothing.
    assert!(o.looks[looks + 1] >= thawed + 3_000, "{:?}", o.looks);
    let (when, _) = o.until(thawed + 60_000).expect("dead");
    assert!(when < thawed + 17_500, "{when}");
}

#[test]
fn refusals_before_and_after_a_freeze_are_not_in_a_row() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut judge = Judge::new(LivenessLimits::default(), start);
    judge.on(Event::Answered, at(100));
    judge.on(Event::Refused, at(1_100));
    // Just not too long, and just too long.
    let mut other = judge.clone();
    assert_eq!(
        judge.on(Event::Refused, at(3_100)),
        Verdict::TakeOver(Death::Refused { times: 2 })
    );
    assert!(matches!(
        other.on(Event::Refused, at(3_101)),
        Verdict::Observe { .. }
    ));
    assert_eq!(
        other.on(Event::Refused, at(4_101)),
        Verdict::TakeOver(Death::Refused { times: 2 })
    );
}

#[test]
fn an_observer_without_its_store_judges_nobody() {
    // The store fails from 10 s to 100 s, and after that every eleventh second.
    let mut o = Observer::new(
        |_| Event::NoAnswer,
        |now| (!(10_000..100_000).contains(&now) && now % 11_000 >= 1_500).then_some(still()),
    );
    assert_eq!(o.until(300_000), None);
    let mut o = Observer::new(
        |_| Event::NoAnswer,
        |now| (!(10_000..100_000).contains(&now)).then_some(still()),
    );
    let (when, _) = o.until(300_000).expect("dead");
    assert!((112_000..115_000).contains(&when), "{when}");
}

#[test]
fn any_failed_request_restarts_the_window() {
    let mut o = Observer::new(|_| Event::NoAnswer, |_| Some(still()));
    assert_eq!(o.until(14_000), None);
    let now = o.at(14_050);
    o.judge.on(Event::StoreFailed, now);
    assert_eq!(o.until(25_000), None);
    assert!(o.until(30_000).is_some());
}

#[test]
fn what_a_slow_read_brings_is_as_old_as_its_request() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut judge = Judge::new(LivenessLimits::default(), start);
    let mut now = 0;
    let mut tick_to = |judge: &mut Judge, to: u64| {
        while now < to {
            now += 1_000;
            judge.on(Event::NoAnswer, at(now));
        }
    };
    let looked = |asked| Event::Looked {
        asked: at(asked),
        sign: still(),
    };
    tick_to(&mut judge, 4_000);
    judge.on(looked(3_900), at(4_000));
    tick_to(&mut judge, 20_000);
    assert!(matches!(
        judge.on(looked(15_999), at(20_000)),
        Verdict::Observe { .. }
    ));
    assert!(matches!(
        judge.on(looked(16_000), at(20_000)),
        Verdict::TakeOver(_)
    ));
}

#[test]
fn another_process_at_its_address_is_no_answer_of_the_peer() {
    // A restart on the same address: the old stream stands still, and nobody had sealed it.
    let restart = |now| {
        if now < 5_000 {
            Event::Answered
        } else {
            Event::AnsweredByAnother
        }
    };
    let mut o = Observer::new(restart, |now| beating(now.min(5_000)));
    let (when, death) = o.until(60_000).expect("dead");
    assert!(matches!(death, Death::Standstill { .. }));
    assert!(when < 22_500, "{when}");
    // The judge of the process that is there now, which answers.
    let mut o = Observer::new(|_| Event::Answered, unasked);
    assert_eq!(o.until(60_000), None);
    // Two brokers behind one address: both write, so both live.
    let mut o = Observer::new(restart, beating);
    assert_eq!(o.until(600_000), None);
}

#[test]
fn a_restart_seen_as_refusals_is_death_and_its_successor_begins_unknown() {
    let mut o = Observer::new(
        |now| {
            if now < 5_000 {
                Event::Answered
            } else {
                Event::Refused
            }
        },
        unasked,
    );
    assert!(o.until(60_000).is_some());
    // Nothing is known of the successor, which does not listen yet.
    let mut o = Observer::new(
        |now| {
            if now < 10_000 {
                Event::Refused
            } else {
                Event::Answered
            }
        },
        beating,
    );
    assert_eq!(o.until(60_000), None);
}

#[test]
fn a_takeover_that_failed_is_asked_for_again_only_on_new_evidence() {
    let mut o = Observer::new(
        |now| {
            if now < 5_000 {
                Event::Answered
            } else {
                Event::Refused
            }
        },
        |_| Some(still()),
    );
    let (first, _) = o.until(60_000).expect("dead");
    let (second, death) = o.until(60_000).expect("dead");
    assert_eq!(death, Death::Refused { times: 2 });
    assert!(second >= first + 500, "{first} {second}");
    let mut o = Observer::new(|_| Event::NoAnswer, |_| Some(still()));
    let (first, _) = o.until(60_000).expect("dead");
    let (second, _) = o.until(60_000).expect("dead");
    assert!(second >= first + 15_000, "{first} {second}");
}
