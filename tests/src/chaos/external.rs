//! librdkafka in a run, through `tests/clients/python/chaos.py`: what it is told goes into the same ledger.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ledger::{Cursor, Violation};
use super::record::Record;
use super::world::{TOPIC, World, count};
use crate::installed::{root, target};

/// Producers of this number and above are librdkafka's.
const FIRST_PRODUCER: u16 = 1_000;
const RECORDS_PER_SECOND: u32 = 60;
/// Time for the last acknowledgements.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running client.
#[derive(Debug)]
pub(super) struct External {
    child: Mutex<Child>,
    output: Mutex<Option<ChildStdout>>,
}

/// What is missing, if anything.
pub(super) fn missing() -> Option<String> {
    (!python().exists()).then(|| "librdkafka is not installed: tests/clients/install.sh python".to_owned())
}

fn python() -> std::path::PathBuf {
    target().join("clients/venv/bin/python")
}

impl External {
    pub(super) fn start(world: &World, logs: &Path) -> Result<External, Violation> {
        let failed = |error: std::io::Error| format!("chaos.py: {error}");
        let errors = File::create(logs.join("rdkafka.log")).map_err(failed)?;
        let bootstrap: Vec<String> = world.bootstrap.iter().map(ToString::to_string).collect();
        let mut child = Command::new(python())
            .arg(root().join("tests/clients/python/chaos.py"))
            .args([&bootstrap.join(","), TOPIC])
            .arg(world.partitions.to_string())
            .arg(FIRST_PRODUCER.to_string())
            .arg(RECORDS_PER_SECOND.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(failed)?;
        let output = child.stdout.take();
        Ok(External {
            child: Mutex::new(child),
            output: Mutex::new(output),
        })
    }

    /// Tells the ledger every line, until the client ends.
    pub(super) fn listen(&self, world: &World) {
        let Some(output) = self.output.lock().take() else {
            return;
        };
        let mut cursors = HashMap::new();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Err(violation) = note(world, &mut cursors, &line) {
                return world.report(format!("librdkafka: {violation}"));
            }
        }
    }

    /// Ends it at once.
    pub(super) fn kill(&self) {
        // It may have ended by itself.
        let _ = self.child.lock().kill();
    }

    /// Lets it get its last acknowledgements and end.
    pub(super) fn finish(&self) -> Result<(), Violation> {
        let deadline = Instant::now() + PATIENCE;
        drop(self.child.lock().stdin.take());
        loop {
            let ended = self.child.lock().try_wait();
            match ended.map_err(|error| format!("chaos.py: {error}"))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("chaos.py ended: {status}, see rdkafka.log")),
                None if Instant::now() > deadline => return Err("chaos.py does not end".to_owned()),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for External {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.lock().wait();
    }
}

/// Notes one line of the client.
fn note(world: &World, cursors: &mut HashMap<(u32, i32), Cursor>, line: &str) -> Result<(), Violation> {
    let bad = || format!("a line that is not understood: {line:?}");
    let (kind, rest) = line.split_once(' ').ok_or_else(bad)?;
    if kind == "!" {
        return Err(rest.to_owned());
    }
    let words: Vec<&str> = rest.split(' ').collect();
    let number = |at: usize| -> Result<i64, Violation> {
        let word = words.get(at).and_then(|word| word.parse().ok());
        word.ok_or_else(bad)
    };
    match kind {
        "a" => {
            let record = Record {
                producer: number(2)? as u16,
                number: number(3)? as u32,
            };
            let partition = number(0)? as i32;
            world.ledger.lock().acknowledged(partition, number(1)?, &[record])
        }
        "p" => {
            let place = (number(0)? as u32, number(1)? as i32);
            cursors.insert(place, Cursor { next: number(2)? });
            Ok(())
        }
        "r" => {
            let (member, partition) = (number(0)? as u32, number(1)? as i32);
            let cursor = cursors.get_mut(&(member, partition)).ok_or_else(bad)?;
            let record = Record::parse(words.get(3).ok_or_else(bad)?.as_bytes())?;
            count(&world.counts.reads, 1);
            world.ledger.lock().read(partition, cursor, number(2)?, record)
        }
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_into_the_ledger() {
        let world = World::new(Vec::new(), 2);
        let mut cursors = HashMap::new();
        let mut note = |line: &str| super::note(&world, &mut cursors, line);
        note("a 1 0 1001 0").unwrap();
        note("p 0 1 0").unwrap();
        note("r 0 1 0 1001.0:").unwrap();
        for (line, part) in [
            ("r 0 1 0 1001.0:", "where 1 comes next"),
            ("r 0 1 1 1001.0:", "it is at 0 too"),
            ("r 0 1 1 1001.7", "nobody wrote"),
            ("a 1 5 1001 0", "it is at 0 too"),
            ("! a consumer was reset", "a consumer was reset"),
            ("r 1 1 0 1001.0:", "not understood"),
            ("x", "not understood"),
        ] {
            let error = note(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
