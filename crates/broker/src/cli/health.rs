//! `alluvium health`: asks a broker whether it is ready, for probes in images that have no HTTP client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::config::SettingsArgs;
use super::serve::reachable;
use crate::config::Surroundings;

/// What is asked unless the URL has a path.
const READY: &str = "/readyz";
/// Largest answer that is read: those of a broker are one line.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
const DEFAULT_PATIENCE_S: u64 = 5;

/// Whom to ask.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct HealthArgs {
    /// http://host:port, with a path if not /readyz is asked [default: http.listen of the settings]
    url: Option<String>,
    /// How long to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_PATIENCE_S,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Flags as for `serve`: without a URL they say where the broker is.
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Ends well if the broker says that it is ready.
pub(super) fn run(args: &HealthArgs) -> Result<(), String> {
    let target = match &args.url {
        Some(url) => Target::parse(url)?,
        None => Target::of_settings(&args.settings)?,
    };
    let answer = target
        .ask(Duration::from_secs(args.timeout))
        .map_err(|error| format!("{target}: {error}"))?;
    match answer {
        (200, body) => {
            println!("{body}");
            Ok(())
        }
        (status, body) => Err(format!("{target}: {status}: {body}")),
    }
}

/// A URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    /// Host and port.
    authority: String,
    path: String,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

impl Target {
    fn parse(url: &str) -> Result<Target, String> {
        let shown = url.escape_debug();
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| format!("'{shown}' is not of the form http://host:port"))?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let port = authority.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        let is_plain = url.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_plain || !matches!(port, Some(Ok(_))) {
            return Err(format!("'{shown}' is not of the form http://host:port"));
        }
        let path = if path.len() > 1 { path } else { READY };
        Ok(Target {
            authority: authority.to_owned(),
            path: path.to_owned(),
        })
    }

    fn of_settings(args: &SettingsArgs) -> Result<Target, String> {
        let surroundings = Surroundings::of_process().map_err(|e| e.to_string())?;
        let (settings, _) = args.load(&surroundings).map_err(|e| e.to_string())?;
        match settings.http_listen {
            Some(address) => Ok(Target {
                authority: SocketAddr::new(reachable(address.ip()), address.port()).to_string(),
                path: READY.to_owned(),
            }),
            None => Err("http.listen is empty: the broker answers nowhere".to_owned()),
        }
    }

    /// Status and first line of the body, at most after `patience`.
    fn ask(&self, patience: Duration) -> std::io::Result<(u16, String)> {
        let deadline = Instant::now() + patience;
        let mut stream = self.connect(deadline)?;
        stream.set_write_timeout(Some(left(deadline)?))?;
        let host = &self.authority;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
            self.path
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        loop {
            stream.set_read_timeout(Some(left(deadline)?))?;
            let mut piece = [0; 4096];
            let count = stream.read(&mut piece)?;
            answer.extend_from_slice(&piece[..count]);
            if count == 0 || answer.len() as u64 > ANSWER_BYTES_MAX {
                break;
            }
        }
        read(&answer).ok_or_else(|| std::io::Error::other("what answers there does not speak HTTP"))
    }

    /// The first address of the host that takes a connection.
    fn connect(&self, deadline: Instant) -> std::io::Result<TcpStream> {
        let mut last = None;
        for address in self.authority.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, left(deadline)?) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| std::io::Error::other("the host has no address")))
    }
}

fn left(deadline: Instant) -> std::io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "no answer in time",
        )),
        false => Ok(left),
    }
}

/// Status and first line of the body.
fn read(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split(' ');
    words.next().filter(|protocol| protocol.starts_with("HTTP/1."))?;
    let status = words.next()?.parse().ok()?;
    Some((status, body.lines().next().unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_url_is_taken_apart() {
        let parsed = |url: &str| Target::parse(url).map(|target| target.to_string());
        assert_eq!(
            parsed("http://127.0.0.1:9464"),
            Ok("http://127.0.0.1:9464/readyz".into())
        );
        assert_eq!(parsed("http://broker:1/"), Ok("http://broker:1/readyz".into()));
        assert_eq!(
            parsed("http://[::1]:9464/livez"),
            Ok("http://[::1]:9464/livez".into())
        );
        for bad in [
            "127.0.0.1:9464",
            "https://x:1",
            "http://x",
            "http://x:y",
            "http://x:1/a b",
            "",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    /// What is made of a server that answers this and then closes.
    fn asked(answer: &'static [u8]) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let count = stream.read(&mut request).unwrap();
            assert!(request[..count].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            stream.write_all(answer).unwrap();
        });
        let args = HealthArgs {
            url: Some(url),
            timeout: DEFAULT_PATIENCE_S,
            settings: SettingsArgs::default(),
        };
        let answered = run(&args);
        server.join().unwrap();
        answered
    }

    #[test]
    fn the_status_decides() {
        assert_eq!(asked(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n"), Ok(()));
        let error = asked(b"HTTP/1.1 503 Service Unavailable\r\n\r\nstopping\n").unwrap_err();
        assert!(error.ends_with("/readyz: 503: stopping"), "{error}");
        let error = asked(b"hello").unwrap_err();
        assert!(error.ends_with("does not speak HTTP"), "{error}");
    }

    #[test]
    fn silence_and_absence_are_failures() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        assert!(target.ask(Duration::from_millis(50)).is_err());
        drop(listener);
        assert!(target.ask(Duration::from_secs(5)).is_err());
    }
}
