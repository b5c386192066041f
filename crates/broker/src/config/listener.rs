//! The syntax of listeners, Kafka's `NAME://host:port`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::key::{quote, split_list};

/// A listener as in Kafka: `NAME://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Upper case.
    pub name: String,
    /// A host name or an address; an IPv6 address stands without brackets.
    pub host: String,
    /// 0 where the system chooses the port.
    pub port: u16,
}

impl Listener {
    /// It listens on every address of the machine, so its host says nothing to a client.
    pub fn is_wildcard(&self) -> bool {
        self.host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_unspecified())
    }
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "{}://[{}]:{}", self.name, self.host, self.port)
        } else {
            write!(f, "{}://{}:{}", self.name, self.host, self.port)
        }
    }
}

/// The name of a listener that is given without one.
pub(crate) const DEFAULT_NAME: &str = "PLAINTEXT";

/// Names of Kafka's security protocols; a listener of such a name has that protocol unless it is mapped.
const SECURE_PROTOCOLS: [&str; 3] = ["SSL", "SASL_PLAINTEXT", "SASL_SSL"];

/// Listeners to bind; an empty host has become 0.0.0.0.
pub(crate) fn parse_listeners(text: &str) -> Result<Vec<Listener>, String> {
    let mut listeners: Vec<Listener> = Vec::new();
    for item in split_list(text) {
        let listener = parse_one(&item)?.named(DEFAULT_NAME);
        if let Some(other) = listeners.iter().find(|other| other.name == listener.name) {
            return Err(format!(
                "two listeners are named {}: give them different names",
                other.name
            ));
        }
        let taken = |other: &&Listener| {
            listener.port != 0 && other.port == listener.port && other.host == listener.host
        };
        if let Some(other) = listeners.iter().find(taken) {
            return Err(format!("{other} and {listener} cannot share an address"));
        }
        listeners.push(listener);
    }
    if listeners.is_empty() {
        Err("expected at least one [NAME://]host:port, port 0 to 65535".into())
    } else {
        Ok(listeners)
    }
}

/// Advertised listeners; a missing name is `None`, to be taken from the listener it belongs to.
pub(crate) fn parse_advertised(text: &str) -> Result<Vec<Unnamed>, String> {
    let mut all: Vec<Unnamed> = Vec::new();
    for item in split_list(text) {
        let one = parse_one(&item)?;
        if all.iter().any(|other| other.name == one.name) {
            return Err(format!(
                "two advertised listeners are named {}",
                one.name.as_deref().unwrap_or(DEFAULT_NAME)
            ));
        }
        if one.port == 0 {
            return Err(format!(
                "{} has port 0, to which no client can connect",
                quote(&item)
            ));
        }
        if !one.host.is_empty() && one.clone().named(DEFAULT_NAME).is_wildcard() {
            return Err(format!(
                "{} is no address that a client can connect to",
                quote(&one.host)
            ));
        }
        all.push(one);
    }
    Ok(all)
}

/// A listener whose name may be left out and whose host may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unnamed {
    pub(crate) name: Option<String>,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Unnamed {
    fn named(self, default: &str) -> Listener {
        let host = if self.host.is_empty() {
            Ipv4Addr::UNSPECIFIED.to_string()
        } else {
            self.host
        };
        Listener {
            name: self.name.unwrap_or_else(|| default.to_owned()),
            host,
            port: self.port,
        }
    }
}

fn parse_one(item: &str) -> Result<Unnamed, String> {
    let (name, address) = match item.split_once("://") {
        Some((name, address)) => (Some(parse_name(name)?), address),
        None => (None, item),
    };
    let (host, port) = split_address(address)
        .ok_or_else(|| format!("{}: expected [NAME://]host:port, port 0 to 65535", quote(item)))?;
    Ok(Unnamed {
        name,
        host: host.to_owned(),
        port,
    })
}

fn parse_name(name: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(good) {
        return Err(format!(
            "{} is no name of a listener: expected letters, digits, '-', '_' and '.'",
            quote(name)
        ));
    }
    Ok(name.to_ascii_uppercase())
}

/// Splits `host:port` and `[v6]:port`.
fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    // `u16::from_str` takes a plus sign, which no one means.
    let port = port
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| port.parse().ok())??;
    let host = match host.strip_prefix('[') {
        Some(inner) => {
            let inner = inner.strip_suffix(']')?;
            inner.parse::<Ipv6Addr>().ok()?;
            inner
        }
        None => host,
    };
    let bare_v6 = host.contains(':') && host.parse::<Ipv6Addr>().is_err();
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'%');
    (!bare_v6 && host.bytes().all(good)).then_some((host, port))
}

/// Pairs of listener name and security protocol.
pub(crate) fn parse_protocols(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut all: Vec<(String, String)> = Vec::new();
    for item in split_list(text) {
        let (name, protocol) = item
            .split_once(':')
            .ok_or_else(|| format!("{} is not of the form NAME:PROTOCOL", quote(&item)))?;
        let (name, protocol) = (parse_name(name)?, protocol.trim().to_ascii_uppercase());
        if protocol != DEFAULT_NAME && !SECURE_PROTOCOLS.contains(&protocol.as_str()) {
            return Err(format!("{} is no security protocol of Kafka", quote(&protocol)));
        }
        if all.iter().any(|(other, _)| *other == name) {
            return Err(format!("listener {name} is named twice"));
        }
        all.push((name, protocol));
    }
    Ok(all)
}

/// The security protocol of a listener name. The names of the protocols need no entry, as in Kafka; of any other
/// name without one it is not known.
pub(crate) fn protocol_of<'a>(name: &'a str, protocols: &'a [(String, String)]) -> Option<&'a str> {
    match protocols.iter().find(|(listener, _)| listener == name) {
        Some((_, protocol)) => Some(protocol),
        None => (name == DEFAULT_NAME || SECURE_PROTOCOLS.contains(&name)).then_some(name),
    }
}

/// The address of the HTTP server; `None` where it is switched off.
pub(crate) fn parse_http(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let named = || {
        let (host, port) = split_address(text)?;
        let address = match host {
            "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            host => host.parse().ok()?,
        };
        Some(SocketAddr::new(address, port))
    };
    named()
        .map(Some)
        .ok_or_else(|| "expected an address as 127.0.0.1:9464, or nothing to switch it off".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str) -> Vec<String> {
        parse_listeners(text)
            .unwrap()
            .iter()
            .map(Listener::to_string)
            .collect()
    }

    #[test]
    fn listeners_of_every_form() {
        assert_eq!(
            listed("PLAINTEXT://127.0.0.1:9092"),
            ["PLAINTEXT://127.0.0.1:9092"]
        );
        assert_eq!(listed("localhost:9092"), ["PLAINTEXT://localhost:9092"]);
        assert_eq!(listed(":0"), ["PLAINTEXT://0.0.0.0:0"]);
        assert_eq!(
            listed(" in://[::1]:1 , out://:2"),
            ["IN://[::1]:1", "OUT://0.0.0.0:2"]
        );
        assert_eq!(listed("A://h:0,B://h:0"), ["A://h:0", "B://h:0"]);
        let all = parse_listeners("X://[::]:1").unwrap();
        assert_eq!((all[0].host.as_str(), all[0].is_wildcard()), ("::", true));
    }

    #[test]
    fn what_is_wrong_with_listeners() {
        for (text, problem) in [
            ("", "at least one"),
            ("9093", "'9093': expected [NAME://]host:port, port 0 to 65535"),
            ("127.0.0.1", "expected [NAME://]host:port"),
            (":99999", "port 0 to 65535"),
            (":9092x", "port 0 to 65535"),
            ("host", "expected [NAME://]host:port"),
            ("PLAINTEXT://host:70000", "expected [NAME://]host:port"),
            ("PLAINTEXT://host:+1", "expected [NAME://]host:port"),
            ("PLAINTEXT://host:", "expected [NAME://]host:port"),
            ("PLAINTEXT://ho st:1", "expected [NAME://]host:port"),
            ("PLAINTEXT://[host]:1", "expected [NAME://]host:port"),
            ("PLAINTEXT://a:b:1", "expected [NAME://]host:port"),
            ("PLAINTEXT:/host:1", "expected [NAME://]host:port"),
            ("://host:1", "no name"),
            ("A B://host:1", "no name"),
            ("a:1,b:2", "two listeners are named PLAINTEXT"),
            ("A://h:1,a://h:2", "two listeners are named A"),
            ("A://h:1,B://h:1", "cannot share"),
            ("A://h:1,,B://h:2", "expected [NAME://]host:port"),
        ] {
            let error = parse_listeners(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn advertised_addresses_must_be_reachable() {
        assert_eq!(parse_advertised("").unwrap(), []);
        let one = parse_advertised("broker-1.example:9092").unwrap();
        assert_eq!(
            (one[0].name.as_deref(), one[0].host.as_str()),
            (None, "broker-1.example")
        );
        assert_eq!(parse_advertised("A://:9092").unwrap()[0].host, "");
        for (text, problem) in [
            ("A://h:0", "port 0"),
            ("A://0.0.0.0:1", "no address"),
            ("A://[::]:1", "no address"),
            ("a:1,b:2", "two advertised"),
            ("A://h:1,A://g:2", "two advertised"),
        ] {
            let error = parse_advertised(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn protocols() {
        let map = parse_protocols("in:plaintext, OUT:SASL_SSL").unwrap();
        assert_eq!(protocol_of("IN", &map), Some("PLAINTEXT"));
        assert_eq!(protocol_of("OUT", &map), Some("SASL_SSL"));
        assert_eq!(protocol_of("SSL", &map), Some("SSL"));
        assert_eq!(protocol_of("PLAINTEXT", &map), Some("PLAINTEXT"));
        assert_eq!(protocol_of("OTHER", &map), None);
        assert!(
            parse_protocols("A").is_err()
                && parse_protocols("A:TLS").is_err()
                && parse_protocols("A:SSL,a:SSL").is_err()
        );
    }

    #[test]
    fn http_addresses() {
        let show = |text: &str| parse_http(text).unwrap().map(|address| address.to_string());
        assert_eq!(show(""), None);
        assert_eq!(show("127.0.0.1:0").as_deref(), Some("127.0.0.1:0"));
        assert_eq!(show("localhost:80").as_deref(), Some("127.0.0.1:80"));
        assert_eq!(show(":80").as_deref(), Some("0.0.0.0:80"));
        assert_eq!(show("[::1]:80").as_deref(), Some("[::1]:80"));
        assert!(parse_http("9464").is_err() && parse_http("somewhere:80").is_err());
    }
}
