use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::manifest::{SlotRun, Topic};

/// A cluster in which every slot belongs to nobody.
fn cluster(slots: u32, brokers: i32) -> Manifest {
    let mut m = Manifest::new(Uuid::from_u128(1), Uuid::from_u128(2), slots);
    for node in 1..=brokers {
        m.register(node, None, BTreeMap::new());
    }
    m
}

fn add_topic(m: &mut Manifest, id: u128, partitions: u32) {
    let topic = Topic {
        id: Uuid::from_u128(id),
        partitions,
        replication_factor: 1,
        configs: BTreeMap::new(),
        unknown: BTreeMap::new(),
    };
    m.topics.insert(format!("topic-{id:08}"), topic);
}

/// Sets the owner of each slot.
fn owned(m: &mut Manifest, owner: impl Fn(Slot) -> Incarnation) {
    m.slots = (0..m.slot_count)
        .map(|first| SlotRun {
            first,
            count: 1,
            owner: owner(first),
            epoch: 1,
            desired: None,
        })
        .collect();
}

fn owners(m: &Manifest) -> Vec<Incarnation> {
    m.slots
        .iter()
        .flat_map(|r| std::iter::repeat_n(r.owner, r.count as usize))
        .collect()
}

/// As if all moves had been made.
fn moved(m: &Manifest, moves: &[(Slot, Incarnation)]) -> Manifest {
    let mut after = owners(m);
    for (slot, to) in moves {
        after[*slot as usize] = *to;
    }
    let mut m = m.clone();
    owned(&mut m, |s| after[s as usize]);
    m
}

/// As if all moves had been asked for and none been made.
fn asked(m: &Manifest, moves: &[(Slot, Incarnation)]) -> Manifest {
    let mut m = moved(m, &[]);
    for (slot, to) in moves {
        m.slots[*slot as usize].desired = Some(*to);
    }
    m
}

fn nobody(_: Incarnation, _: &StreamEntry) -> bool {
    false
}

fn planned(m: &Manifest) -> Manifest {
    moved(m, &plan(m, nobody))
}

/// What was reached, for the live brokers.
struct Counts {
    totals: BTreeMap<Incarnation, u32>,
    topics: BTreeMap<String, BTreeMap<Incarnation, u32>>,
    slots: BTreeMap<Incarnation, u32>,
    heaviest: u32,
}

fn difference(of: &BTreeMap<Incarnation, u32>) -> u32 {
    of.values().max().unwrap() - of.values().min().unwrap()
}

fn counts(m: &Manifest) -> Counts {
    let none: BTreeMap<Incarnation, u32> = m.live().map(|(i, _)| (i, 0)).collect();
    let (mut totals, mut slots, mut topics) = (none.clone(), none.clone(), BTreeMap::new());
    let owners = owners(m);
    for owner in &owners {
        *slots.get_mut(owner).expect("every slot has a live owner") += 1;
    }
    let mut weight = vec![0; m.slot_count as usize];
    for (name, topic) in &m.topics {
        let mut of_topic = none.clone();
        for partition in 0..topic.partitions as i32 {
            let slot = m.slot_of(&TopicPartition {
                topic: topic.id,
                partition,
            }) as usize;
            weight[slot] += 1;
            *totals.get_mut(&owners[slot]).unwrap() += 1;
            *of_topic.get_mut(&owners[slot]).unwrap() += 1;
        }
        topics.insert(name.clone(), of_topic);
    }
    Counts {
        totals,
        topics,
        slots,
        heaviest: weight.into_iter().max().unwrap_or(0),
    }
}

/// Neighbouring slots of which each belongs to another broker, for every place in the ring.
fn perfect_stripes(owners: &[Incarnation], brokers: usize) -> bool {
    owners
        .windows(brokers)
        .all(|w| w.iter().collect::<BTreeSet<_>>().len() == brokers)
}

#[test]
fn slots_of_a_new_cluster_lie_in_stripes() {
    for brokers in [1, 2, 3, 5, 30] {
        let mut m = cluster(1024, brokers);
        owned(&mut m, |_| 1);
        let after = owners(&planned(&m));
        assert!(perfect_stripes(&after, brokers as usize), "{brokers}: {after:?}");
        // The same if nobody had them before.
        let mut m = cluster(1024, brokers);
        owned(&mut m, |_| 0);
        let dealt = orphans(
            &m,
            &(0..1024).collect::<Vec<_>>(),
            &(1..=brokers as u64).collect::<Vec<_>>(),
        );
        assert_eq!(dealt.len(), 1024);
        let after = owners(&moved(&m, &dealt));
        assert!(perfect_stripes(&after, brokers as usize), "{brokers}: {after:?}");
    }
}

#[test]
fn a_topic_that_is_created_in_stripes_is_spread_without_a_move() {
    let mut m = cluster(1024, 3);
    owned(&mut m, |_| 1);
    let mut m = planned(&m);
    add_topic(&mut m, 7, 100);
    assert_eq!(plan(&m, nobody), vec![]);
    assert!(difference(&counts(&m).totals) <= 1);
}

#[test]
fn a_second_broker_gets_half_of_each_topic() {
    let mut m = cluster(1024, 2);
    owned(&mut m, |_| 1);
    add_topic(&mut m, 7, 9);
    add_topic(&mut m, 8, 50);
    let moves = plan(&m, nobody);
    assert_eq!(moves.len(), 512);
    let after = counts(&moved(&m, &moves));
    assert!(difference(&after.totals) <= 1);
    assert!(
        after.topics.values().all(|t| difference(t) <= 1),
        "{:?}",
        after.topics
    );
    assert_eq!(difference(&after.slots), 0);
}

#[test]
fn a_broker_that_is_drained_loses_all_and_gets_nothing() {
    let mut m = cluster(64, 3);
    owned(&mut m, |s| u64::from(s % 2) + 1);
    add_topic(&mut m, 7, 30);
    let by_node = |_: Incarnation, s: &StreamEntry| s.node_id == 2;
    let moves = plan(&m, by_node);
    let after = owners(&moved(&m, &moves));
    assert!(after.iter().all(|o| [1, 3].contains(o)), "{after:?}");
    assert_eq!(after.iter().filter(|o| **o == 3).count(), 32);
    assert_eq!(plan(&moved(&m, &moves), by_node), vec![]);
    // Nobody is left to give them to.
    assert_eq!(plan(&m, |_, _| true), vec![]);
    assert_eq!(orphans(&m, &[1, 2], &[]), vec![]);
}

#[test]
fn what_is_on_its_way_counts_as_arrived_and_is_left_alone() {
    let mut m = cluster(4, 2);
    owned(&mut m, |_| 1);
    add_topic(&mut m, 7, 4);
    m.slots[2].desired = Some(2);
    let moves = plan(&m, nobody);
    assert_eq!(moves.len(), 1);
    assert_ne!(moves[0].0, 2);
    m.slots[3].desired = Some(2);
    assert_eq!(plan(&m, nobody), vec![]);
    // Too much is on its way: the rest is not moved back and forth before it has arrived.
    m.slots[1].desired = Some(2);
    m.slots[0].desired = Some(2);
    assert_eq!(plan(&m, nobody), vec![]);
}

#[test]
fn a_way_that_leads_to_the_dead_is_given_up() {
    let mut m = cluster(4, 3);
    owned(&mut m, |s| u64::from(s % 2) + 1);
    add_topic(&mut m, 7, 4);
    m.slots[2].desired = Some(3);
    m.streams.remove(&3);
    assert_eq!(plan(&m, nobody), vec![(2, 1)]);
    // The same if it is drained.
    let mut m = cluster(4, 3);
    owned(&mut m, |s| u64::from(s % 2) + 1);
    add_topic(&mut m, 7, 4);
    m.slots[2].desired = Some(3);
    assert_eq!(plan(&m, |i, _| i == 3), vec![(2, 1)]);
}

#[test]
fn an_orphan_arrives_where_it_was_going() {
    let mut m = cluster(4, 3);
    owned(&mut m, |_| 1);
    m.slots[2].desired = Some(3);
    m.streams.remove(&1);
    let dealt = orphans(&m, &[3, 2, 1, 0, 9], &[3, 2, 3]);
    assert_eq!(
        dealt.iter().map(|(s, _)| *s).collect::<Vec<_>>(),
        vec![0, 1, 2, 3]
    );
    assert!(dealt.contains(&(2, 3)), "{dealt:?}");
    assert_eq!(dealt.iter().filter(|(_, to)| *to == 3).count(), 2);
}

#[test]
fn a_plan_does_not_depend_on_how_runs_are_written() {
    let mut joined = cluster(64, 3);
    joined.slots[0].owner = 1;
    for id in 0..5 {
        add_topic(&mut joined, id, 20);
    }
    let apart = moved(&joined, &[]);
    assert_ne!(joined.slots.len(), apart.slots.len());
    assert_eq!(plan(&joined, nobody), plan(&apart, nobody));
}

#[test]
fn the_first_part_of_a_plan_goes_on_as_planned() {
    let mut m = cluster(256, 4);
    owned(&mut m, |_| 1);
    for id in 0..10 {
        add_topic(&mut m, id, 40);
    }
    let whole = plan(&m, nobody);
    let (mut done, mut rounds) = (m.clone(), 0);
    let mut hand_overs = 0;
    loop {
        let mut moves = plan(&done, nobody);
        if moves.is_empty() {
            break;
        }
        moves.truncate(16);
        hand_overs += moves.len();
        done = moved(&done, &moves);
        rounds += 1;
        assert!(rounds < 100);
    }
    assert!(
        hand_overs <= whole.len() + whole.len() / 16,
        "{hand_overs} of {}",
        whole.len()
    );
}

#[test]
fn from_one_broker_to_eight_and_back_each_step_costs_about_its_share() {
    let mut m = cluster(1024, 1);
    owned(&mut m, |_| 1);
    for id in 0..40u128 {
        add_topic(
            &mut m,
            id.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835),
            10 + id as u32,
        );
    }
    let (mut shares, mut moves) = (0, 0);
    for brokers in 2..=8 {
        m.register(brokers, None, BTreeMap::new());
        let planned = plan(&m, nobody);
        shares += 1024 / brokers as usize;
        moves += planned.len();
        m = moved(&m, &planned);
        assert_level(&m);
    }
    assert!(moves >= shares, "the test is wrong");
    assert!(
        moves <= shares + shares / 5,
        "{moves} moves for shares of {shares}"
    );
    let uneven = counts(&m).topics.values().filter(|t| difference(t) > 2).count();
    assert!(uneven <= 2, "{uneven} topics");
    let (mut left, mut moves) = (0, 0);
    for leaver in (2..=8).rev() {
        left += owners(&m).iter().filter(|o| **o == leaver).count();
        let planned = plan(&m, |i, _| i == leaver);
        moves += planned.len();
        m = moved(&m, &planned);
        m.streams.remove(&leaver);
        assert_level(&m);
    }
    assert!(
        moves <= left + left / 5,
        "{moves} moves for {left} slots that were left"
    );
}

/// Topics as (id, partitions); owners as a seed.
fn world(brokers: i32) -> impl Strategy<Value = Manifest> {
    let topic = (any::<u128>(), prop_oneof![1..4u32, 1..40u32, 200..300u32]);
    let slots = prop_oneof![Just(16u32), Just(64), Just(256)];
    let how = prop_oneof![Just(1u64), Just(2), Just(997)];
    (slots, proptest::collection::vec(topic, 0..12), how).prop_map(move |(slots, topics, how)| {
        let mut m = cluster(slots, brokers);
        for (id, partitions) in topics {
            add_topic(&mut m, id, partitions);
        }
        // All at one broker, alternating at two, or in no order.
        let pick = |s: Slot| (u64::from(s) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        owned(&mut m, |s| 1 + (pick(s) % how) % brokers as u64);
        m
    })
}

/// Differences that are left must be small beside a slot.
fn assert_level(m: &Manifest) {
    let c = counts(m);
    let most = c.heaviest + c.heaviest / 4 + 1;
    let most = if c.heaviest <= 1 { 1 } else { most };
    assert!(
        difference(&c.totals) <= most,
        "{:?}, heaviest {}",
        c.totals,
        c.heaviest
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_cluster_is_levelled_once(m in (1..8i32).prop_flat_map(world)) {
        let moves = plan(&m, nobody);
        let after = moved(&m, &moves);
        assert_level(&after);
        prop_assert_eq!(plan(&after, nobody), vec![]);
        prop_assert_eq!(plan(&asked(&m, &moves), nobody), vec![]);
        let slots: BTreeSet<_> = moves.iter().map(|(s, _)| s).collect();
        prop_assert_eq!(slots.len(), moves.len());
        let before = owners(&m);
        prop_assert!(moves.iter().all(|(s, to)| before[*s as usize] != *to));
    }

    #[test]
    fn topics_that_share_no_slot_are_spread_evenly(m in (1..8i32).prop_flat_map(world)) {
        let mut m = m;
        let mut taken = BTreeSet::new();
        let count = m.slot_count;
        m.topics.retain(|_, t| {
            let slots: Vec<Slot> = (0..t.partitions as i32)
                .map(|partition| slot_of(&TopicPartition { topic: t.id, partition }, count))
                .collect();
            let free = t.partitions <= count && slots.iter().all(|s| !taken.contains(s));
            if free {
                taken.extend(slots);
            }
            free
        });
        let c = counts(&planned(&m));
        prop_assert!(difference(&c.totals) <= 1);
        for (name, of) in &c.topics {
            prop_assert!(difference(of) <= 1, "{} {:?}", name, of);
        }
    }

    #[test]
    fn one_that_joins_gets_its_share_and_little_else_moves(m in (1..8i32).prop_flat_map(world)) {
        let before = planned(&m);
        let mut joined = before.clone();
        let new = joined.register(99, None, BTreeMap::new());
        let moves = plan(&joined, nobody);
        assert_level(&moved(&joined, &moves));
        let brokers = joined.live().count();
        let share = joined.slot_count as usize / brokers;
        let elsewhere = moves.iter().filter(|(_, to)| *to != new).count();
        prop_assert!(moves.len() <= 2 * share + 8, "{} moves, share {}", moves.len(), share);
        prop_assert!(elsewhere <= share + 8, "{} elsewhere, share {}", elsewhere, share);
    }

    #[test]
    fn what_one_leaves_behind_goes_to_the_others_and_little_else_moves(
        m in (2..8i32).prop_flat_map(world), who in any::<prop::sample::Index>()
    ) {
        let before = planned(&m);
        let live: Vec<Incarnation> = before.live().map(|(i, _)| i).collect();
        let gone = *who.get(&live);
        let slots: Vec<Slot> = (0..).zip(owners(&before)).filter(|(_, o)| *o == gone).map(|(s, _)| s).collect();
        // Drained: what is left behind, and a few more.
        let moves = plan(&before, |i, _| i == gone);
        let elsewhere = moves.len() - slots.len();
        prop_assert!(elsewhere <= 2 * slots.len() + 8, "{} elsewhere, {} slots", elsewhere, slots.len());
        // Dead: just that.
        let mut dead = before.clone();
        dead.streams.remove(&gone);
        let live: Vec<Incarnation> = dead.live().map(|(i, _)| i).collect();
        let dealt = orphans(&dead, &slots, &live);
        prop_assert_eq!(dealt.iter().map(|(s, _)| *s).collect::<Vec<_>>(), slots);
        let after = moved(&dead, &dealt);
        assert_level(&after);
        let then = plan(&after, nobody).len();
        prop_assert!(then <= 2 * dealt.len() + 8, "{} then, {} slots", then, dealt.len());
    }
}

/// Run it in release with `--ignored --nocapture`.
#[test]
#[ignore = "prints how long plans of a large cluster take and how good they are"]
fn a_large_cluster() {
    let mut m = cluster(1024, 30);
    for id in 0..1000u128 {
        add_topic(
            &mut m,
            id.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835),
            100,
        );
    }
    let report = |what: &str, m: &Manifest, seconds: f64, moves: usize| {
        let c = counts(m);
        let mut by_difference = BTreeMap::<u32, u32>::new();
        for of in c.topics.values() {
            *by_difference.entry(difference(of)).or_default() += 1;
        }
        let (totals, slots) = (difference(&c.totals), difference(&c.slots));
        println!(
            "{what}: {moves} moves in {seconds:.3} s; totals differ by {totals} (a slot has up to {}), slots by {slots}; topics by difference {by_difference:?}",
            c.heaviest
        );
    };
    let timed = |what: &str, m: &Manifest, draining: Incarnation| {
        let started = std::time::Instant::now();
        let moves = plan(m, |i, _| i == draining);
        let seconds = started.elapsed().as_secs_f64();
        let mut after = moved(m, &moves);
        if draining > 0 {
            after.streams.remove(&draining);
        }
        report(what, &after, seconds, moves.len());
        after
    };
    owned(&mut m, |_| 1);
    let mut m = timed("one to thirty", &m, 0);
    timed("again", &m, 0);
    let new = m.register(31, None, BTreeMap::new());
    let m = timed("a join", &m, 0);
    let m = timed("it leaves", &m, new);
    let slots: Vec<Slot> = (0..)
        .zip(owners(&m))
        .filter(|(_, o)| *o == 7)
        .map(|(s, _)| s)
        .collect();
    let live: Vec<Incarnation> = m.live().map(|(i, _)| i).filter(|i| *i != 7).collect();
    let started = std::time::Instant::now();
    let dealt = orphans(&m, &slots, &live);
    let seconds = started.elapsed().as_secs_f64();
    let mut after = moved(&m, &dealt);
    after.streams.remove(&7);
    report("one dies", &after, seconds, dealt.len());
    timed("and after that", &after, 0);
    for brokers in [3, 10] {
        let mut few = cluster(1024, brokers);
        few.topics = m.topics.clone();
        owned(&mut few, |s| u64::from(s) % 2 + 1);
        let mut few = timed(&format!("two to {brokers}"), &few, 0);
        few.register(99, None, BTreeMap::new());
        timed("one more", &few, 0);
    }
}
