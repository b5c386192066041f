//! A seed decides everything: the same one gives the same trace, and another one another.

use std::process::Command;

fn result(seed: &str) -> String {
    let run = Command::new(env!("CARGO_BIN_EXE_alluvium-simulation"))
        .args(["--quiet", "--seed", seed])
        .output()
        .expect("the simulation can be run");
    let out = String::from_utf8_lossy(&run.stdout).into_owned();
    let line = out.lines().find(|l| l.starts_with("RESULT "));
    line.unwrap_or_else(|| panic!("no result: {out}{}", String::from_utf8_lossy(&run.stderr)))
        .to_owned()
}

#[test]
fn a_seed_gives_the_same_trace_every_time() {
    let seeds = ["1", "2", "3", "4", "5"];
    let first = seeds.map(result);
    assert_eq!(first, seeds.map(result));
    for (i, one) in first.iter().enumerate() {
        assert!(!first[..i].contains(one), "two seeds gave {one}");
    }
}
