//! The limit of open files: each connection of a client takes one, and the system's default of 1,024 is far
//! below `max.connections`.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files besides the connections of clients: the store's connections and files, listeners, HTTP, logs.
const RESERVE: u64 = 512;

/// Raises the soft limit to the hard one, which needs no right. A sentence if the result is too low for
/// `max_connections`.
pub(crate) fn raise_limit(max_connections: usize) -> Option<String> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_err() {
        // No limit at all is refused for open files, even where the hard limit says so.
        let enough = Rlimit {
            current: current.map(|current| current.max(wanted(max_connections))),
            maximum,
        };
        let _ = setrlimit(Resource::Nofile, enough);
    }
    let now = getrlimit(Resource::Nofile).current;
    tracing::debug!(before = current, now, "the limit of open files");
    too_low(now, max_connections)
}

/// How many files may be open; `None` for any number.
pub(crate) fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

fn wanted(max_connections: usize) -> u64 {
    let connections = u64::try_from(max_connections).unwrap_or(u64::MAX);
    connections.saturating_add(RESERVE)
}

/// `None` is no limit.
fn too_low(limit: Option<u64>, max_connections: usize) -> Option<String> {
    let wanted = wanted(max_connections);
    let limit = limit.filter(|limit| *limit < wanted)?;
    Some(format!(
        "only {limit} files can be open, which is less than max.connections = {max_connections} and {RESERVE} \
         for the rest: raise the hard limit (ulimit -Hn, LimitNOFILE) to {wanted} or lower max.connections"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        raise_limit(1);
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        // Where the hard limit is none, the system may keep the soft one.
        assert!(current == maximum || maximum.is_none());
    }

    #[test]
    fn a_limit_below_the_connections_is_told_with_what_to_do() {
        assert_eq!(too_low(None, 10_000), None);
        assert_eq!(too_low(Some(10_512), 10_000), None);
        let line = too_low(Some(4_096), 10_000).unwrap();
        assert!(
            line.contains("only 4096 files") && line.contains("to 10512"),
            "{line}"
        );
        assert!(too_low(Some(u64::MAX - 1), usize::MAX).is_some());
    }
}
