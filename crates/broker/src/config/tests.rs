//! Tests of the whole way of a setting: tables, layers, contradictions, dynamic configs, descriptions.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alluvium_log::manifest::{Manifest, Topic};
use alluvium_log::store::StoreKind;

use super::broker_keys::{broker_key, broker_keys};
use super::foreign::{Foreign, foreign};
use super::key::{Preset, parse};
use super::topic_keys::topic_key;
use super::*;

/// Loads with a file `server.properties` of this text, if any, these variables and these flags.
fn load(
    file: Option<&str>,
    variables: &[(&str, &str)],
    flags: &[(&'static str, &str, &str)],
) -> Result<(Settings, Vec<Warning>), ConfigError> {
    let read_file = |path: &Path| match file {
        Some(text) if path == Path::new("/home/me/server.properties") => Ok(text.as_bytes().to_vec()),
        _ => Err(io::ErrorKind::NotFound.into()),
    };
    let surroundings = Surroundings {
        variables: variables
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        cwd: "/home/me".into(),
        hostname: Some("box.example".into()),
        read_file: &read_file,
    };
    let flag = |&(flag, key, value): &(&'static str, &str, &str)| FlagSetting {
        flag,
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let config = file.map(|_| Path::new("server.properties"));
    Settings::load(config, flags.iter().map(flag).collect(), &surroundings)
}

fn from_file(text: &str) -> (Settings, Vec<String>) {
    let (settings, warnings) = load(Some(text), &[], &[]).unwrap();
    (settings, warnings.into_iter().map(|warning| warning.0).collect())
}

/// The one line that is printed for a file that cannot be used.
fn file_error(text: &str) -> String {
    let line = load(Some(text), &[], &[]).unwrap_err().to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

fn manifest(version: u64) -> Manifest {
    let id = uuid::Uuid::from_u128(1);
    Manifest {
        version,
        ..Manifest::new(id, id, 8)
    }
}

fn with_topic(mut manifest: Manifest, name: &str, configs: &[(&str, &str)]) -> Manifest {
    let configs = configs
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    let topic = Topic {
        id: uuid::Uuid::from_u128(2),
        partitions: 1,
        configs,
        replication_factor: 1,
        unknown: BTreeMap::new(),
    };
    manifest.topics.insert(name.to_owned(), topic);
    manifest
}

fn with_broker(mut manifest: Manifest, broker: &str, key: &str, value: &str) -> Manifest {
    manifest
        .broker_configs
        .entry(broker.to_owned())
        .or_default()
        .insert(key.to_owned(), value.to_owned());
    manifest
}

fn config(pairs: &[(&'static str, &'static str)]) -> Config {
    Config::new(Settings::from_pairs(pairs.iter().copied()).unwrap(), 1)
}

fn row<'a>(rows: &'a [DescribedConfig], name: &str) -> &'a DescribedConfig {
    rows.iter()
        .find(|row| row.name == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

// The tables.

#[test]
fn names_are_distinct_and_spelt_as_the_environment_needs() {
    let names: BTreeSet<_> = broker_keys().map(|key| key.name).collect();
    assert_eq!(names.len(), broker_keys().count());
    let variables: BTreeSet<_> = broker_keys().map(|key| variable_name(key.name)).collect();
    assert_eq!(variables.len(), names.len());
    for name in names {
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.'),
            "{name}"
        );
        assert_eq!(foreign(name), None, "{name} is ours and Kafka's rest at once");
        assert!(
            !name.starts_with("test."),
            "{name}: its variable would pass for one of the tests"
        );
    }
    let topics: Vec<_> = TOPIC_KEYS.iter().map(|key| key.name).collect();
    assert!(topics.is_sorted() && topics.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn every_default_passes_its_own_check() {
    for key in broker_keys() {
        let texts: &[&str] = match &key.default {
            Preset::Unset => &[],
            Preset::Fixed(text) => &[text],
            Preset::ByStore { s3, embedded } => &[s3, embedded],
        };
        for text in texts {
            let value =
                parse(key.kind, &key.rule, text).unwrap_or_else(|error| panic!("{}: {error}", key.name));
            assert_eq!(value.to_text(), *text, "{} is not spelt canonically", key.name);
        }
    }
    for key in TOPIC_KEYS {
        assert!(
            key.broker.is_empty() || key.default.is_empty(),
            "{} has two defaults",
            key.name
        );
        if key.broker.is_empty() {
            let value = parse(key.kind, &key.rule, key.default)
                .unwrap_or_else(|error| panic!("{}: {error}", key.name));
            assert_eq!(value.to_text(), key.default, "{}", key.name);
        }
    }
}

#[test]
fn a_topic_config_and_the_broker_settings_behind_it_fit_together() {
    let config = config(&[]);
    for key in TOPIC_KEYS {
        for (index, (name, factor)) in key.broker.iter().enumerate() {
            let broker = broker_key(name).unwrap_or_else(|| panic!("{}: no {name}", key.name));
            // As in Kafka only the first is dynamic; the other units are for the file.
            assert_eq!(broker.dynamic, index == 0, "{name}");
            assert!(index > 0 || *factor == 1, "{name}");
            assert!(index > 0 || broker.kind == key.kind, "{name}");
        }
        let rows = config.describe_topic(&manifest(0), "t");
        let value = row(&rows, key.name)
            .value
            .clone()
            .unwrap_or_else(|| panic!("{} has no default", key.name));
        assert_eq!(config.check_topic_config(key.name, &value), Ok(()));
    }
}

#[test]
fn the_delay_of_deletions_may_be_set_while_the_log_is_open() {
    let config = config(&[("log.segment.delete.delay.ms", "5000")]);
    assert_eq!(config.settings.log.delete_delay, Duration::from_secs(5));
    // The log was opened with it, or with what a harness made of it.
    assert_eq!(config.delete_delay_set(&manifest(1)), None);
    let set = |broker: &str, value: &str| {
        let manifest = with_broker(manifest(1), broker, "log.segment.delete.delay.ms", value);
        config.delete_delay_set(&manifest)
    };
    assert_eq!(set("", "0"), Some(Duration::ZERO));
    assert_eq!(set("1", "7000"), Some(Duration::from_secs(7)));
    assert_eq!((set("2", "7000"), set("1", "soon")), (None, None));
}

#[test]
fn every_meaning_is_written_down() {
    for (name, doc) in broker_keys()
        .map(|key| (key.name, key.doc))
        .chain(TOPIC_KEYS.iter().map(|key| (key.name, key.doc)))
    {
        assert!(
            doc.len() > 10 && doc.ends_with('.') && !doc.contains('\n'),
            "{name}: {doc}"
        );
    }
}

// Layers.

#[test]
fn defaults_without_anything() {
    let (settings, warnings) = load(None, &[("HOME", "/home/me")], &[]).unwrap();
    assert_eq!(warnings, []);
    assert_eq!((settings.node_id, settings.log.node_id), (None, None));
    assert_eq!(settings.rack, None);
    assert_eq!(settings.store_url, "file:///home/me/alluvium-data");
    assert_eq!(settings.listeners[0].to_string(), "PLAINTEXT://127.0.0.1:9092");
    assert_eq!(settings.advertised_listeners, settings.listeners);
    assert_eq!(settings.http_listen.unwrap().to_string(), "127.0.0.1:9464");
    assert_eq!(settings.num_partitions, 1);
    assert!(settings.auto_create_topics && settings.delete_topic_enable);
    assert_eq!(settings.socket_request_max_bytes, 104_857_600);
    assert_eq!(settings.memory_budget_bytes, 134_217_728);
    assert_eq!(settings.group_max_session_timeout, Duration::from_secs(1800));
    assert_eq!(settings.offsets_retention, Duration::from_secs(7 * 24 * 3600));
    assert_eq!(settings.offsets_topic_num_partitions, 50);
    assert_eq!(settings.log_format, LogFormat::Text);
    assert_eq!(settings.log.flush_interval, Duration::ZERO);
    assert_eq!(settings.log.puts_in_flight, 2);
    assert_eq!(settings.log.request_budget_per_second, 0.0);
    assert_eq!(settings.log.flush_bytes, 4 << 20);
    assert_eq!(settings.log.merge, alluvium_log::MergeOptions::default());
    assert_eq!(settings.log.delete_delay, Duration::from_secs(60));
    assert_eq!(settings.log.garbage_interval, Duration::from_secs(300));
    assert_eq!(settings.log.endpoints["PLAINTEXT"].port, 9092);
}

#[test]
fn defaults_depend_on_the_store() {
    let settings = Settings::from_pairs([("store.url", "s3://bucket/x")]).unwrap();
    assert_eq!(settings.log.flush_interval, Duration::from_millis(30));
    assert_eq!(settings.log.puts_in_flight, 8);
    assert_eq!(settings.log.request_budget_per_second, 4.0);
    assert_eq!(settings.log.request_budget_burst, 900.0);
    let rows = Config::new(settings, 1).describe_broker(&manifest(0), Some(1));
    assert_eq!(row(&rows, "flush.interval.ms").value.as_deref(), Some("30"));
    let embedded = config(&[("store.url", "memory://")]).describe_broker(&manifest(0), Some(1));
    assert_eq!(row(&embedded, "flush.interval.ms").value.as_deref(), Some("0"));
    let set = Settings::from_pairs([("store.url", "s3://b"), ("flush.interval.ms", "250")]).unwrap();
    assert_eq!(set.log.flush_interval, Duration::from_millis(250));
}

#[test]
fn flag_over_environment_over_file_over_default() {
    let file = "num.partitions=2\nfetch.max.bytes=2000\ngroup.max.size=20\n";
    let variables = [
        ("ALLUVIUM_NUM_PARTITIONS", "3"),
        ("ALLUVIUM_FETCH_MAX_BYTES", "3000"),
    ];
    let flags = [("--set", "num.partitions", "4")];
    let (settings, _) = load(Some(file), &variables, &flags).unwrap();
    assert_eq!(settings.num_partitions, 4);
    assert_eq!(settings.fetch_max_bytes, 3000);
    assert_eq!(settings.group_max_size, 20);
    let place = |name: &str| settings.value(broker_key(name).unwrap()).unwrap().1.to_string();
    assert_eq!(place("num.partitions"), "--set");
    assert_eq!(place("fetch.max.bytes"), "environment ALLUVIUM_FETCH_MAX_BYTES");
    assert_eq!(place("group.max.size"), "server.properties:3");
    assert_eq!(place("max.connections"), "default");
}

#[test]
fn the_environment_may_name_the_file() {
    let read_file = |path: &Path| {
        assert_eq!(path, Path::new("/etc/alluvium.properties"));
        Ok(b"num.partitions=7".to_vec())
    };
    let variables = vec![(
        "ALLUVIUM_CONFIG".to_owned(),
        "/etc/alluvium.properties".to_owned(),
    )];
    let surroundings = Surroundings {
        variables,
        cwd: "/".into(),
        hostname: None,
        read_file: &read_file,
    };
    let (settings, _) = Settings::load(None, vec![], &surroundings).unwrap();
    assert_eq!(settings.num_partitions, 7);
}

#[test]
fn every_broker_key_can_be_set_from_the_environment() {
    for key in broker_keys() {
        let text = super::default_text(key, StoreKind::Embedded).unwrap_or_else(|| match key.name {
            "advertised.listeners" => "PLAINTEXT://h:1".into(),
            _ => "1".into(),
        });
        let variables = [(variable_name(key.name), text)];
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let (settings, warnings) = load(None, &variables, &[]).unwrap();
        assert_eq!(warnings, [], "{}", key.name);
        assert!(settings.explicit(key.name).is_some(), "{}", key.name);
    }
}

#[test]
fn a_bad_setting_is_one_line_with_key_value_place_and_remedy() {
    assert_eq!(
        file_error("# x\n\nlog.retention.mss=5"),
        "server.properties:3: unknown key 'log.retention.mss'; did you mean log.retention.ms?"
    );
    assert_eq!(
        file_error("num.partitions=many"),
        "server.properties:1: bad value 'many' for num.partitions: expected a whole number from 1 to 100000"
    );
    assert_eq!(
        file_error("retention.ms=5"),
        "server.properties:1: 'retention.ms' is a topic config; the broker setting for its default is log.retention.ms"
    );
    assert_eq!(
        file_error("this.is.nothing.at.all=5"),
        "server.properties:1: unknown key 'this.is.nothing.at.all'; `alluvium config` lists all"
    );
    assert_eq!(
        file_error("a=\\u12"),
        "server.properties:1: \\u must be followed by four hexadecimal digits"
    );
    assert_eq!(
        file_error("x\\ny=1"),
        "server.properties:1: unknown key 'x\\ny'; `alluvium config` lists all"
    );
    assert_eq!(
        file_error("advertised.host.name=x"),
        "server.properties:1: unknown key 'advertised.host.name'; did you mean advertised.listeners?"
    );

    let environment = |name: &str, value: &str| load(None, &[(name, value)], &[]).unwrap_err().to_string();
    assert_eq!(
        environment("ALLUVIUM_LOG_RETENTIN_MS", "5"),
        "environment ALLUVIUM_LOG_RETENTIN_MS: unknown setting; did you mean ALLUVIUM_LOG_RETENTION_MS?"
    );
    assert_eq!(
        environment("ALLUVIUM_LOG_RETENTION_MS", "0"),
        "environment ALLUVIUM_LOG_RETENTION_MS: bad value '0' for log.retention.ms: expected a whole number, at least 1, or -1 for no limit"
    );
    assert_eq!(
        environment("ALLUVIUM_SOMETHING_ELSE_ALTOGETHER", ""),
        "environment ALLUVIUM_SOMETHING_ELSE_ALTOGETHER: unknown setting; `alluvium config` lists all"
    );
    assert_eq!(
        environment("ALLUVIUM_STORE", "/x"),
        "environment ALLUVIUM_STORE: unknown setting; did you mean ALLUVIUM_STORE_URL?"
    );
    assert!(environment("ALLUVIUM_Num_Partitions", "1").ends_with("did you mean ALLUVIUM_NUM_PARTITIONS?"));
    assert!(
        environment("ALLUVIUM_CONFIG", "gone").starts_with("environment ALLUVIUM_CONFIG: cannot read 'gone'")
    );

    let flag = |flags: &[(&'static str, &str, &str)]| load(None, &[], flags).unwrap_err().to_string();
    assert_eq!(
        flag(&[("--set", "lisners", "x:1")]),
        "--set: unknown key 'lisners'; did you mean listeners?"
    );
    assert_eq!(
        flag(&[("--set", "store", "/x")]),
        "--set: unknown key 'store'; did you mean store.url?"
    );
    assert_eq!(
        flag(&[("--store", "store.url", "gs://x")]),
        "--store: bad value 'gs://x' for store.url: expected a path, file:///path, memory:// or s3://bucket/prefix"
    );
    assert_eq!(
        flag(&[("--node-id", "node.id", "1"), ("--set", "node.id", "2")]),
        "--set: 'node.id' is set twice, to '1' by --node-id and to '2'"
    );
    let missing = Settings::load(
        Some(Path::new("gone")),
        vec![],
        &Surroundings {
            variables: vec![],
            cwd: "/".into(),
            hostname: None,
            read_file: &|_| Err(io::ErrorKind::NotFound.into()),
        },
    );
    assert!(
        missing
            .unwrap_err()
            .to_string()
            .starts_with("--config: cannot read 'gone': ")
    );
}

#[test]
fn all_bad_settings_are_told_at_once_in_their_order() {
    let error = load(
        Some("num.partitions=x\nbroker.id=x\nnum.io.threads=3\nlisten=:1"),
        &[("ALLUVIUM_X", "1"), ("ALLUVIUM_FETCH_MAX_BYTES", "?")],
        &[("--set", "lisners", "x:1"), ("--set", "node.id", "4")],
    );
    let text = error.unwrap_err().to_string();
    let starts = [
        "server.properties:1: bad value 'x' for num.partitions",
        "server.properties:2: bad value 'x' for broker.id",
        "server.properties:4: unknown key 'listen'; did you mean listeners?",
        "environment ALLUVIUM_X: unknown setting",
        "environment ALLUVIUM_FETCH_MAX_BYTES: bad value '?'",
        "--set: unknown key 'lisners'",
    ];
    let mut lines: Vec<_> = text.lines().collect();
    // Those of the environment are found before its values are read.
    assert_eq!(lines.len(), starts.len(), "{text}");
    for start in starts {
        let at = lines.iter().position(|line| line.starts_with(start));
        lines.remove(at.unwrap_or_else(|| panic!("no line begins with {start}: {text}")));
    }
}

#[test]
fn variables_of_the_tests_are_not_settings() {
    let variables = [("ALLUVIUM_TEST_CLIENTS", "off"), ("ALLUVIUM_TEST_BIN", "/x")];
    assert_eq!(load(None, &variables, &[]).unwrap().1, []);
}

#[test]
fn a_bad_value_of_every_key_is_refused() {
    for key in broker_keys() {
        let bad = match key.name {
            "broker.rack" => continue,
            "store.url" => "ftp://x",
            _ => "\u{1}?",
        };
        let line = load(None, &[], &[("--set", key.name, bad)])
            .unwrap_err()
            .to_string();
        assert!(
            line.starts_with("--set: bad value '") && line.contains(key.name),
            "{line}"
        );
    }
}

#[test]
fn contradictions_are_told_where_they_were_made() {
    assert_eq!(
        file_error("\ngroup.min.session.timeout.ms=9000\ngroup.max.session.timeout.ms=8000"),
        "server.properties:2: group.min.session.timeout.ms = 9000 must not be above group.max.session.timeout.ms = 8000"
    );
    assert_eq!(
        file_error("memory.budget.bytes=1048576"),
        "server.properties:1: socket.request.max.bytes = 104857600 must not be above memory.budget.bytes = 1048576"
    );
    assert!(
        file_error("log.cleaner.max.compaction.lag.ms=1\nlog.cleaner.min.compaction.lag.ms=2")
            .contains("must not be above")
    );
    assert!(file_error("node.id=1\nbroker.id=2").contains("broker.id = 2 contradicts node.id = 1"));
    let (_, warnings) = from_file("message.max.bytes=200000000");
    assert!(warnings[0].contains("message.max.bytes is above"), "{warnings:?}");
}

#[test]
fn broker_id_is_an_alias_in_every_layer() {
    let (settings, _) = load(Some("broker.id=5"), &[], &[]).unwrap();
    assert_eq!((settings.node_id, settings.log.node_id), (Some(5), Some(5)));
    let (settings, _) = load(Some("broker.id=5\nnode.id=5"), &[("ALLUVIUM_NODE_ID", "6")], &[]).unwrap();
    assert_eq!(settings.node_id, Some(6));
    assert_eq!(settings.value(broker_key("broker.id").unwrap()).unwrap().0, "6");
    let (settings, _) = load(Some("node.id=5"), &[("ALLUVIUM_BROKER_ID", "7")], &[]).unwrap();
    assert_eq!(settings.node_id, Some(7));
}

#[test]
fn kubernetes_service_links_are_not_settings() {
    let variables = [
        ("ALLUVIUM_SERVICE_HOST", "10.0.0.1"),
        ("ALLUVIUM_SERVICE_PORT", "9092"),
        ("ALLUVIUM_SERVICE_PORT_KAFKA", "9092"),
        ("ALLUVIUM_PORT", "tcp://10.0.0.1:9092"),
        ("ALLUVIUM_PORT_9092_TCP", "tcp://10.0.0.1:9092"),
        ("ALLUVIUM_PORT_9092_TCP_ADDR", "10.0.0.1"),
        ("ALLUVIUM_PORT_9092_TCP_PORT", "9092"),
        ("ALLUVIUM_PORT_9092_TCP_PROTO", "tcp"),
        ("ALLUVIUM_KAFKA_HEADLESS_SERVICE_HOST", "10.0.0.2"),
    ];
    assert_eq!(load(None, &variables, &[]).unwrap().1, []);
    for (name, value) in [
        ("ALLUVIUM_PORT", "9092"),
        ("ALLUVIUM_PORT_X_TCP", "1"),
        ("ALLUVIUM_HOST", "x"),
    ] {
        assert!(load(None, &[(name, value)], &[]).is_err(), "{name}");
    }
}

#[test]
fn the_environment_of_the_official_kafka_image_is_taken() {
    let variables = [
        ("KAFKA_NODE_ID", "7"),
        ("KAFKA_LISTENERS", "PLAINTEXT://:9092,CONTROLLER://:9093"),
        ("KAFKA_ADVERTISED_LISTENERS", "PLAINTEXT://broker-1:9092"),
        ("KAFKA_CONTROLLER_LISTENER_NAMES", "CONTROLLER"),
        ("KAFKA_PROCESS_ROLES", "broker,controller"),
        ("KAFKA_LOG_RETENTION_MS", "5"),
        ("KAFKA_NUM_PARTITIONS", "3"),
        ("ALLUVIUM_NUM_PARTITIONS", "4"),
        // Not the broker's.
        ("KAFKA_HEAP_OPTS", "-Xmx1G"),
        ("KAFKA_OPTS", "-Dx=y"),
        ("KAFKA_LOG4J_ROOT_LOGLEVEL", "DEBUG"),
        ("KAFKA_SERVICE_HOST", "10.0.0.1"),
        ("KAFKA_PORT", "tcp://10.0.0.1:9092"),
    ];
    let (settings, warnings) = load(None, &variables, &[]).unwrap();
    assert_eq!(settings.node_id, Some(7));
    assert_eq!(settings.listeners.len(), 1);
    let of = |key: &str| {
        let (value, place) = settings.value(broker_key(key).unwrap()).unwrap();
        (value, place.to_string())
    };
    assert_eq!(of("log.retention.ms").1, "environment KAFKA_LOG_RETENTION_MS");
    assert_eq!(of("num.partitions").0, "4", "ours wins");
    let told: Vec<String> = warnings.into_iter().map(|warning| warning.0).collect();
    let about_roles = told.iter().find(|line| line.contains("process.roles"));
    assert!(
        about_roles.is_some_and(|line| line.starts_with("ignored: ")),
        "{told:?}"
    );
    assert!(!told.iter().any(|line| line.contains("OPTS")), "{told:?}");
}

#[test]
fn names_of_the_official_kafka_image_that_are_no_settings_are_told() {
    let variables = [("KAFKA_LOG_RETENTIN_MS", "5"), ("KAFKA_A__B___C", "1")];
    let (settings, warnings) = load(None, &variables, &[]).unwrap();
    let retention = settings.value(broker_key("log.retention.ms").unwrap());
    assert!(
        matches!(retention, None | Some((_, Place::Default))),
        "{retention:?}"
    );
    assert_eq!(
        warnings[0].0,
        "ignored: 'KAFKA_A__B___C', 'KAFKA_LOG_RETENTIN_MS' in the environment: neither a setting of Kafka's nor one of \
         ours"
    );
    // What would protect a Kafka broker is not ignored, wherever it is asked for.
    let variables = [("KAFKA_AUTHORIZER_CLASS_NAME", "x.Y")];
    let error = load(None, &variables, &[]).unwrap_err().to_string();
    assert!(
        error.starts_with("environment KAFKA_AUTHORIZER_CLASS_NAME: "),
        "{error}"
    );
    let error = load(None, &[("KAFKA_NUM_PARTITIONS", "none")], &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("environment KAFKA_NUM_PARTITIONS: bad value 'none'"),
        "{error}"
    );
}

#[test]
fn underscores_in_names_of_the_official_kafka_image_stand_for_three_characters() {
    use super::layers::kafkas_key;
    assert_eq!(kafkas_key("LOG_RETENTION_MS"), "log.retention.ms");
    assert_eq!(kafkas_key("A__B___C____D_"), "a_b-c____d.");
    assert_eq!(kafkas_key(""), "");
}

#[test]
fn a_server_properties_of_kafka_starts_a_broker() {
    let (settings, warnings) = from_file(
        "process.roles=broker,controller\nnode.id=3\ncontroller.quorum.bootstrap.servers=localhost:9093\n\
         listeners=PLAINTEXT://:9092,CONTROLLER://:9093\ninter.broker.listener.name=PLAINTEXT\n\
         advertised.listeners=PLAINTEXT://localhost:9092,CONTROLLER://localhost:9093\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL\n\
         num.network.threads=3\nnum.io.threads=8\nsocket.send.buffer.bytes=102400\nsocket.receive.buffer.bytes=102400\n\
         socket.request.max.bytes=104857600\nlog.dirs=/tmp/kraft-combined-logs\nnum.partitions=1\n\
         num.recovery.threads.per.data.dir=1\noffsets.topic.replication.factor=1\n\
         share.coordinator.state.topic.replication.factor=1\ntransaction.state.log.min.isr=1\n\
         log.retention.hours=168\nlog.segment.bytes=1073741824\nlog.retention.check.interval.ms=300000\n\
         zookeeper.connect=localhost:2181\nlog.cleaner.threads=1\nlog.cleaner.io.buffer.size=1\n",
    );
    assert_eq!(settings.node_id, Some(3));
    let listeners: Vec<_> = settings.listeners.iter().map(Listener::to_string).collect();
    assert_eq!(listeners, ["PLAINTEXT://0.0.0.0:9092"]);
    let advertised: Vec<_> = settings
        .advertised_listeners
        .iter()
        .map(Listener::to_string)
        .collect();
    assert_eq!(advertised, ["PLAINTEXT://localhost:9092"]);
    assert_eq!(warnings.len(), 3, "{warnings:#?}");
    assert!(
        warnings[0].starts_with("ignored: in server.properties process.roles:1, controller."),
        "{}",
        warnings[0]
    );
    assert_eq!(
        warnings[0].matches("server.properties").count(),
        1,
        "{}",
        warnings[0]
    );
    for key in [
        "num.io.threads:10,",
        "zookeeper.connect",
        "log.cleaner.io.buffer.size",
        "share.coordinator",
    ] {
        assert!(warnings[0].contains(key), "{key}");
    }
    assert_eq!(
        warnings[1],
        "server.properties:14: log.dirs is not used: data goes to store.url (file:///home/me/alluvium-data)"
    );
    assert!(
        warnings[2].contains("ignored: CONTROLLER://0.0.0.0:9093"),
        "{}",
        warnings[2]
    );
    let (_, warnings) = from_file("log.dir=/a\nlog4j.rootLogger=INFO\nlistener.name.x.ssl.keystore.type=PEM");
    assert_eq!(warnings.len(), 2, "{warnings:#?}");
    assert!(warnings[1].contains("log.dir is not used"), "{warnings:#?}");
}

#[test]
fn what_protects_a_kafka_broker_is_not_ignored() {
    assert_eq!(foreign("sasl.enabled.mechanisms"), Some(Foreign::Ignored));
    for (text, problem) in [
        ("listeners=SSL://:9093", "there is only PLAINTEXT"),
        (
            "listeners=IN://:9093\nlistener.security.protocol.map=IN:SASL_SSL",
            "protocol SASL_SSL",
        ),
        (
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "no authorization here",
        ),
    ] {
        let line = file_error(text);
        assert!(
            line.contains(problem) && line.starts_with("server.properties:1: "),
            "{line}"
        );
    }
    assert!(
        load(
            Some("listeners=SSL://:9093\nlistener.security.protocol.map=SSL:PLAINTEXT"),
            &[],
            &[]
        )
        .is_ok()
    );
    assert!(load(Some("authorizer.class.name="), &[], &[]).is_ok());
    assert!(file_error("listeners=SSL://:9093").ends_with("clients talk unencrypted and unauthenticated"));
    assert_eq!(
        file_error("listeners=PLAINTEXT://:1,X://:9093"),
        "server.properties:1: no security protocol is defined for listener X: add X:PLAINTEXT to listener.security.protocol.map"
    );
    assert!(
        load(
            Some("listeners=X://:9093\nlistener.security.protocol.map=X:PLAINTEXT"),
            &[],
            &[]
        )
        .is_ok()
    );
}

#[test]
fn the_last_of_two_lines_wins_and_it_is_said() {
    let (settings, warnings) = from_file("num.partitions=1\nnum.partitions=2\n");
    assert_eq!(settings.num_partitions, 2);
    assert_eq!(
        warnings,
        ["server.properties:2: 'num.partitions' replaces the value of line 1"]
    );
}

// Listeners.

/// Names of listeners that tests make up.
const MAP: &str = "\nlistener.security.protocol.map=A:PLAINTEXT,B:PLAINTEXT,C:PLAINTEXT,OUT:PLAINTEXT";

fn advertised(text: &str) -> Vec<String> {
    from_file(&format!("{text}{MAP}"))
        .0
        .advertised_listeners
        .iter()
        .map(Listener::to_string)
        .collect()
}

#[test]
fn advertised_listeners_follow_the_listeners() {
    assert_eq!(advertised("listeners=A://h:1,B://g:2"), ["A://h:1", "B://g:2"]);
    assert_eq!(
        advertised("listeners=A://h:1,B://g:2\nadvertised.listeners=B://x:9"),
        ["A://h:1", "B://x:9"]
    );
    assert_eq!(
        advertised("listeners=OUT://:1\nadvertised.listeners=x:9"),
        ["OUT://x:9"]
    );
    assert_eq!(advertised("listeners=:0"), ["PLAINTEXT://box.example:0"]);
    let (_, warnings) = from_file("listeners=0.0.0.0:9092");
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].contains("PLAINTEXT://box.example:9092")
            && warnings[0].contains("set advertised.listeners")
    );
    let (settings, warnings) = from_file("listeners=:9092\nadvertised.listeners=:19092");
    assert_eq!(
        settings.advertised_listeners[0].to_string(),
        "PLAINTEXT://box.example:19092"
    );
    assert_eq!(warnings.len(), 1);
    assert!(file_error("advertised.listeners=B://x:9").contains("B is not among the listeners (PLAINTEXT)"));
    assert!(
        file_error(&format!(
            "listeners=A://h:1\nadvertised.listeners=x:1,A://y:1{MAP}"
        ))
        .contains("two advertised listeners are named A")
    );
    assert!(file_error("listeners=C://:1\ncontroller.listener.names=c").contains("none is for clients"));
}

#[test]
fn ports_that_the_system_chose_reach_clients_and_other_brokers() {
    let mut settings = Settings::from_pairs([
        ("listeners", "A://127.0.0.1:0,B://127.0.0.1:7"),
        ("listener.security.protocol.map", "A:PLAINTEXT,B:PLAINTEXT"),
    ])
    .unwrap();
    settings.set_bound_ports(&BTreeMap::from([("A".to_owned(), 4321), ("B".to_owned(), 9)]));
    assert_eq!(settings.listeners[0].port, 4321);
    assert_eq!(settings.advertised_listeners[0].port, 4321);
    assert_eq!(settings.advertised_listeners[1].port, 7);
    assert_eq!(settings.log.endpoints["A"].port, 4321);
    assert_eq!(settings.log.endpoints["B"].port, 7);
}

#[test]
fn times_without_end_cannot_overflow_an_instant() {
    let settings = Settings::from_pairs([
        ("connections.max.idle.ms", "-1"),
        ("log.retention.check.interval.ms", "9223372036854775807"),
        ("offsets.retention.minutes", "2147483647"),
    ])
    .unwrap();
    let ten_years = Duration::from_secs(10 * 365 * 24 * 3600);
    assert_eq!(settings.connections_max_idle, ten_years);
    assert_eq!(settings.log_retention_check_interval, ten_years);
    assert_eq!(settings.offsets_retention, ten_years);
}

// What holds for a topic.

#[test]
fn topic_over_dynamic_broker_over_dynamic_default_over_static_over_default() {
    let config = config(&[("message.max.bytes", "400")]);
    let bytes = |manifest: &Manifest| config.topic(manifest, "t").max_message_bytes;
    assert_eq!(
        Config::new(Settings::from_pairs([]).unwrap(), 1)
            .topic(&manifest(0), "t")
            .max_message_bytes,
        1_048_588
    );
    let mut now = manifest(1);
    assert_eq!(bytes(&now), 400);
    now = with_broker(now, "", "message.max.bytes", "300");
    now.version += 1;
    assert_eq!(bytes(&now), 300);
    now = with_broker(now, "2", "message.max.bytes", "5");
    now = with_broker(now, "1", "message.max.bytes", "200");
    now.version += 1;
    assert_eq!(bytes(&now), 200);
    now = with_topic(now, "t", &[("max.message.bytes", "100")]);
    now.version += 1;
    assert_eq!(bytes(&now), 100);
    assert_eq!(config.topic(&now, "other").max_message_bytes, 200);
}

#[test]
fn retention_in_milliseconds_beats_minutes_beats_hours() {
    let ms = |pairs: &[(&'static str, &'static str)]| config(pairs).topic(&manifest(0), "t").retention_ms;
    assert_eq!(ms(&[]), 168 * 3_600_000);
    assert_eq!(ms(&[("log.retention.hours", "2")]), 7_200_000);
    assert_eq!(
        ms(&[("log.retention.hours", "2"), ("log.retention.minutes", "3")]),
        180_000
    );
    assert_eq!(
        ms(&[("log.retention.minutes", "3"), ("log.retention.ms", "4")]),
        4
    );
    assert_eq!(ms(&[("log.retention.hours", "-1")]), -1);
    assert_eq!(
        ms(&[("log.retention.hours", "2147483647")]),
        2_147_483_647 * 3_600_000
    );
    let set = with_topic(
        manifest(0),
        "t",
        &[("retention.ms", "-1"), ("retention.bytes", "-7")],
    );
    let settings = config(&[]).topic(&set, "t");
    assert_eq!((settings.retention_ms, settings.retention_bytes), (-1, -1));
}

#[test]
fn cleanup_policies_and_timestamps() {
    let of = |configs: &[(&str, &str)]| config(&[]).topic(&with_topic(manifest(0), "t", configs), "t");
    let plain = of(&[]);
    assert!(plain.cleanup_delete && !plain.cleanup_compact && !plain.log_append_time);
    assert_eq!(plain.timestamp_before_max_ms, i64::MAX);
    assert_eq!(plain.timestamp_after_max_ms, 3_600_000);
    let both = of(&[
        ("cleanup.policy", "compact, delete"),
        ("message.timestamp.type", "LogAppendTime"),
    ]);
    assert!(both.cleanup_delete && both.cleanup_compact && both.log_append_time);
    let none = of(&[("cleanup.policy", "")]);
    assert!(!none.cleanup_delete && !none.cleanup_compact);
}

#[test]
fn history_is_on_and_follows_topic_and_broker() {
    let plain = config(&[]).topic(&with_topic(manifest(0), "t", &[]), "t");
    assert!(plain.archive_enable && !plain.archive_text_values);
    assert_eq!(
        (plain.archive_file_bytes, plain.archive_interval_ms),
        (256 << 20, 3_600_000)
    );
    let config = config(&[("archive.interval.ms", "60000"), ("archive.value.type", "string")]);
    let now = with_broker(manifest(0), "", "archive.enable", "false");
    let now = with_topic(now, "t", &[("archive.file.bytes", "1048576")]);
    let set = config.topic(&now, "t");
    assert_eq!(
        (
            set.archive_enable,
            set.archive_file_bytes,
            set.archive_interval_ms
        ),
        (false, 1 << 20, 60_000)
    );
    assert!(!set.archive_text_values, "the broker's is for topics to come");
}

#[test]
fn the_type_of_values_is_fixed_when_a_topic_is_created() {
    let created = |pairs: &[(&'static str, &'static str)], manifest: &Manifest, given: &[(&str, &str)]| {
        let given = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let mut configs = given.collect();
        config(pairs).fix_at_creation(manifest, &mut configs);
        configs.get("archive.value.type").cloned()
    };
    let key = "archive.value.type";
    let string = Some("string".to_owned());
    assert_eq!(created(&[], &manifest(0), &[]), None);
    assert_eq!(created(&[], &manifest(0), &[(key, "string")]), string);
    assert_eq!(created(&[(key, "string")], &manifest(0), &[]), string);
    let binary = Some("binary".to_owned());
    assert_eq!(
        created(&[(key, "string")], &manifest(0), &[(key, "binary")]),
        binary
    );
    let dynamic = with_broker(manifest(0), "", key, "string");
    assert_eq!(created(&[], &dynamic, &[]), string);
    assert!(Config::is_fixed_at_creation(key) && !Config::is_fixed_at_creation("archive.enable"));
}

#[test]
fn topic_settings_are_computed_once_per_manifest_version() {
    let config = config(&[]);
    let first = with_topic(manifest(5), "t", &[("retention.ms", "1")]);
    let held = config.topic(&first, "t");
    assert!(Arc::ptr_eq(&held, &config.topic(&first, "t")));
    let second = with_topic(manifest(6), "t", &[("retention.ms", "2")]);
    assert_eq!(config.topic(&second, "t").retention_ms, 2);
    // A request that still holds the older manifest sees that, and does not spoil the newer view.
    assert_eq!(config.topic(&first, "t").retention_ms, 1);
    assert_eq!(config.topic(&second, "t").retention_ms, 2);
    // Made-up names leave nothing behind.
    assert_eq!(
        config.topic(&second, "no such topic").retention_ms,
        168 * 3_600_000
    );
    let third = with_topic(second.clone(), "no such topic", &[("retention.ms", "3")]);
    assert_eq!(config.topic(&third, "no such topic").retention_ms, 3);
}

#[test]
fn a_stored_value_that_is_not_understood_is_passed_over() {
    let odd = with_broker(manifest(0), "", "message.max.bytes", "lots");
    let odd = with_broker(odd, "", "num.partitions", "9");
    let odd = with_topic(odd, "t", &[("retention.ms", "soon"), ("from.the.future", "1")]);
    let config = config(&[]);
    let settings = config.topic(&odd, "t");
    assert_eq!(
        (settings.max_message_bytes, settings.retention_ms),
        (1_048_588, 168 * 3_600_000)
    );
    let rows = config.describe_broker(&odd, Some(1));
    assert_eq!(row(&rows, "num.partitions").value.as_deref(), Some("1"));
}

#[test]
fn what_is_stored_and_beats_a_setting_of_this_start_is_told() {
    let config = config(&[
        ("log.retention.hours", "2"),
        ("message.max.bytes", "400"),
        ("num.partitions", "3"),
    ]);
    assert_eq!(config.overruled(&manifest(0)), [""; 0]);
    let now = with_broker(manifest(0), "1", "message.max.bytes", "500");
    let now = with_broker(now, "", "log.retention.ms", "60000");
    let lines = config.overruled(&now);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(
        lines[0].starts_with(
            "log.retention.hours = 2 (--set) is overruled by log.retention.ms = 60000, stored for all brokers: "
        ),
        "{lines:#?}"
    );
    assert!(
        lines[1].starts_with("message.max.bytes = 400 (--set) is overruled by 500, stored for broker 1: ")
            && lines[1].ends_with("--delete-config message.max.bytes"),
        "{lines:#?}"
    );
    // What says the same, is another broker's, or is not read overrules nothing.
    let now = with_broker(manifest(0), "", "log.retention.ms", "7200000");
    let now = with_broker(now, "2", "message.max.bytes", "500");
    let now = with_broker(now, "1", "num.partitions", "9");
    assert_eq!(config.overruled(&now), [""; 0]);
}

// What AlterConfigs and CreateTopics may set.

#[test]
fn topic_configs_are_checked() {
    let config = config(&[]);
    for (key, value) in [
        ("retention.ms", "-1"),
        ("cleanup.policy", "compact"),
        ("compression.type", "zstd"),
        ("compression.gzip.level", "-1"),
        ("leader.replication.throttled.replicas", "0:1,1:2"),
        ("follower.replication.throttled.replicas", "*"),
        ("segment.bytes", "1048576"),
    ] {
        assert_eq!(config.check_topic_config(key, value), Ok(()), "{key}={value}");
    }
    for (key, value, sentence) in [
        (
            "retention.mss",
            "1",
            "unknown topic config 'retention.mss'; did you mean retention.ms?",
        ),
        ("completely.else", "1", "unknown topic config 'completely.else'"),
        (
            "retention.ms",
            "-2",
            "bad value '-2' for retention.ms: expected a whole number, at least -1",
        ),
        (
            "cleanup.policy",
            "shred",
            "bad value 'shred' for cleanup.policy: expected a list of any of compact, delete",
        ),
        (
            "max.message.bytes",
            "-1",
            "bad value '-1' for max.message.bytes: expected a whole number, at least 0",
        ),
        (
            "preallocate",
            "1",
            "bad value '1' for preallocate: expected true or false",
        ),
        (
            "leader.replication.throttled.replicas",
            "1",
            "bad value '1' for leader.replication.throttled.replicas: expected a list of PARTITION:BROKER pairs, or *",
        ),
    ] {
        assert_eq!(config.check_topic_config(key, value), Err(sentence.to_owned()));
    }
    let pair = |low: &str, high: &str| {
        let configs = [("min.compaction.lag.ms", low), ("max.compaction.lag.ms", high)];
        let configs = configs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        config.check_topic_configs(&manifest(0), &configs)
    };
    assert_eq!(pair("5", "5"), Ok(()));
    assert_eq!(
        pair("6", "5"),
        Err("min.compaction.lag.ms = 6 must not be above max.compaction.lag.ms = 5".into())
    );
    assert!(pair("x", "5").is_err());
}

#[test]
fn broker_configs_are_checked() {
    let config = config(&[]);
    assert_eq!(config.check_broker_config("log.retention.ms", "-1"), Ok(()));
    assert_eq!(
        config.check_broker_config("log.cleanup.policy", "compact,delete"),
        Ok(())
    );
    for (key, value, sentence) in [
        (
            "listeners",
            "x:1",
            "listeners is read-only while the broker runs; set it at its start",
        ),
        (
            "log.retention.hours",
            "1",
            "log.retention.hours is read-only while the broker runs; change log.retention.ms instead",
        ),
        (
            "num.io.threads",
            "1",
            "'num.io.threads' is a setting of Kafka that has no meaning here",
        ),
        (
            "mesage.max.bytes",
            "1",
            "unknown key 'mesage.max.bytes'; did you mean message.max.bytes?",
        ),
        (
            "message.max.bytes",
            "-1",
            "bad value '-1' for message.max.bytes: expected a whole number, at least 0",
        ),
    ] {
        assert_eq!(config.check_broker_config(key, value), Err(sentence.to_owned()));
    }
    assert!(
        config
            .check_broker_config("log.cleaner.max.compaction.lag.ms", "1")
            .is_ok()
    );
    assert!(
        config.check_broker_key("message.max.bytes").is_ok() && config.check_broker_key("node.id").is_err()
    );
    assert!(Config::is_list("cleanup.policy") && Config::is_list("log.cleanup.policy"));
    assert!(!Config::is_list("retention.ms") && !Config::is_list("nothing"));
}

// DescribeConfigs.

#[test]
fn a_topic_is_described_with_sources_and_synonyms() {
    let config = config(&[("message.max.bytes", "400"), ("log.retention.minutes", "3")]);
    let now = with_broker(manifest(0), "", "message.max.bytes", "300");
    let now = with_broker(now, "1", "message.max.bytes", "200");
    let now = with_topic(
        now,
        "t",
        &[("max.message.bytes", " 100 "), ("cleanup.policy", "compact")],
    );
    let rows = config.describe_topic(&now, "t");
    assert_eq!(rows.len(), TOPIC_KEYS.len());
    assert!(
        rows.iter()
            .all(|row| !row.read_only && !row.sensitive && row.value.is_some())
    );

    let bytes = row(&rows, "max.message.bytes");
    assert_eq!(
        (bytes.value.as_deref(), bytes.source, bytes.kind),
        (Some("100"), 1, 3)
    );
    let synonym = |name: &str, value: &str, source: i8| (name.to_owned(), Some(value.to_owned()), source);
    assert_eq!(
        bytes.synonyms,
        [
            synonym("max.message.bytes", "100", 1),
            synonym("message.max.bytes", "200", 2),
            synonym("message.max.bytes", "300", 3),
            synonym("message.max.bytes", "400", 4),
            synonym("message.max.bytes", "1048588", 5),
        ]
    );
    let retention = row(&rows, "retention.ms");
    assert_eq!(
        (retention.value.as_deref(), retention.source),
        (Some("180000"), 4)
    );
    assert_eq!(
        retention.synonyms,
        [
            synonym("log.retention.minutes", "3", 4),
            synonym("log.retention.hours", "168", 5)
        ]
    );
    // Kafka Connect refuses an internal topic whose policy does not read exactly so.
    let policy = row(&rows, "cleanup.policy");
    assert_eq!(
        (policy.value.as_deref(), policy.source, policy.kind),
        (Some("compact"), 1, 7)
    );
    let ratio = row(&rows, "min.cleanable.dirty.ratio");
    assert_eq!(
        (ratio.value.as_deref(), ratio.source, ratio.kind),
        (Some("0.5"), 5, 6)
    );
    let remote = row(&rows, "remote.storage.enable");
    assert_eq!(
        (remote.value.as_deref(), remote.source, remote.synonyms.len()),
        (Some("false"), 5, 0)
    );
    assert_eq!(
        row(&rows, "flush.ms").value.as_deref(),
        Some("9223372036854775807")
    );
    assert_eq!(row(&rows, "segment.ms").value.as_deref(), Some("604800000"));
    assert_eq!(
        config.topic_config_value(&now, "t", "cleanup.policy").as_deref(),
        Some("compact")
    );
    assert_eq!(config.topic_config_value(&now, "t", "nothing"), None);
    assert!(topic_key("retention.ms").is_some());
}

#[test]
fn a_broker_is_described_with_sources_and_synonyms() {
    let config = config(&[
        ("message.max.bytes", "400"),
        ("num.partitions", "6"),
        ("log.retention.minutes", "3"),
    ]);
    let now = with_broker(manifest(0), "", "message.max.bytes", "300");
    let now = with_broker(now, "1", "log.cleanup.policy", "compact");
    let rows = config.describe_broker(&now, Some(1));
    assert_eq!(rows.len(), broker_keys().count());
    assert!(rows.is_sorted_by_key(|row| row.name));

    let bytes = row(&rows, "message.max.bytes");
    assert_eq!(
        (bytes.value.as_deref(), bytes.source, bytes.read_only),
        (Some("300"), 3, false)
    );
    let sources: Vec<_> = bytes.synonyms.iter().map(|(_, _, source)| *source).collect();
    assert_eq!(sources, [3, 4, 5]);
    assert_eq!(row(&rows, "log.cleanup.policy").source, 2);
    let partitions = row(&rows, "num.partitions");
    assert_eq!(
        (
            partitions.value.as_deref(),
            partitions.source,
            partitions.read_only
        ),
        (Some("6"), 4, true)
    );
    // Unset, as in Kafka, although a topic's retention is known.
    let ms = row(&rows, "log.retention.ms");
    assert_eq!((ms.value.as_deref(), ms.source, ms.synonyms.len()), (None, 5, 0));
    let minutes = row(&rows, "log.retention.minutes");
    assert_eq!((minutes.value.as_deref(), minutes.source), (Some("3"), 4));
    assert_eq!(row(&rows, "log.retention.hours").value.as_deref(), Some("168"));
    assert_eq!(row(&rows, "broker.id").value.as_deref(), Some("1"));

    let default = config.describe_broker(&now, None);
    assert_eq!(default.len(), 1);
    assert_eq!(
        (default[0].name, default[0].value.as_deref(), default[0].source),
        ("message.max.bytes", Some("300"), 3)
    );
    assert_eq!(default[0].synonyms.len(), 1);
}
