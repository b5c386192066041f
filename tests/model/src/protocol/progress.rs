//! Progress: from every reachable state in which there is still hope, "all acked" is reachable.
//! Builds the whole graph, then walks it backwards from the goal.

use std::collections::HashMap;

use stateright::Model;

use super::model::{Act, Protocol};
use super::state::*;
use crate::check::{fingerprint, successors};

pub struct Report {
    pub states: usize,
    /// States without excuse from which the goal cannot be reached.
    pub stuck: usize,
    /// How to get to the first stuck one.
    pub trace: Vec<Act>,
}

fn goal(s: &State) -> bool {
    s.recs.iter().all(|r| r.acked.is_some())
}

/// Clients may still retry, and for every owner that is lost a takeover is left.
fn hope(m: &Protocol, s: &State) -> bool {
    let sound = |b: &Broker| {
        let objs = &s.streams[b.inc as usize].objs;
        b.up && s.manifest.streams[b.inc as usize] == Status::Live
            && !objs.iter().skip(b.next as usize).any(|o| *o == Obj::Seal)
    };
    let sound_owner = |inc: Inc| s.brokers.iter().any(|b| b.inc == inc && sound(b));
    let mut lost: Vec<Inc> = s
        .manifest
        .slots
        .iter()
        .map(|m| m.owner)
        .filter(|o| *o != NOBODY && !sound_owner(*o))
        .collect();
    lost.sort();
    lost.dedup();
    let taker = s.brokers.iter().any(|b| sound(b) && b.take.is_none());
    let clients = s
        .recs
        .iter()
        .all(|r| r.acked.is_some() || r.sent < m.cfg.max_sends);
    let waiting = s.manifest.slots.iter().any(|m| m.owner == NOBODY);
    clients && (!waiting || taker) && (lost.is_empty() || taker && lost.len() <= s.left.takeover as usize)
}

pub fn analyse(m: &Protocol) -> Report {
    let mut index = HashMap::new();
    let (mut parent, mut good, mut hopeful) = (vec![], vec![], vec![]);
    let mut back: Vec<(u32, u32)> = vec![];
    let mut frontier: Vec<(u32, State)> = vec![];
    for s in m.init_states() {
        index.insert(fingerprint(&s), 0u32);
        (parent, good, hopeful) = (vec![None], vec![goal(&s)], vec![hope(m, &s)]);
        frontier.push((0, s));
    }
    while !frontier.is_empty() {
        let mut next = vec![];
        for (i, s) in frontier {
            for (a, t) in successors(m, &s) {
                let n = index.len() as u32;
                let j = *index.entry(fingerprint(&t)).or_insert(n);
                back.push((j, i));
                if j == n {
                    parent.push(Some((i, a)));
                    good.push(goal(&t));
                    hopeful.push(hope(m, &t));
                    next.push((j, t));
                }
            }
        }
        frontier = next;
    }
    back.sort_unstable();
    let mut todo: Vec<u32> = (0..good.len() as u32).filter(|i| good[*i as usize]).collect();
    while let Some(j) = todo.pop() {
        let from = back.partition_point(|e| e.0 < j);
        for &(_, i) in back[from..].iter().take_while(|e| e.0 == j) {
            if !good[i as usize] {
                good[i as usize] = true;
                todo.push(i);
            }
        }
    }
    let stuck: Vec<usize> = (0..good.len()).filter(|i| !good[*i] && hopeful[*i]).collect();
    let mut trace = vec![];
    let mut at = stuck.first().copied();
    while let Some((i, a)) = at.and_then(|x| parent[x].clone()) {
        trace.push(a);
        at = Some(i as usize);
    }
    trace.reverse();
    Report {
        states: good.len(),
        stuck: stuck.len(),
        trace,
    }
}
