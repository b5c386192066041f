//! The Dockerfile, without Docker: everything in it that can be wrong and be seen without building an image.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use alluvium_tests::broker::{self, Broker, BrokerOptions};
use alluvium_tests::installed::root;

/// An instruction of a Dockerfile: its word and the rest, continued lines joined.
type Instruction = (String, String);

fn instructions() -> Vec<Instruction> {
    let text = std::fs::read_to_string(root().join("Dockerfile")).unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let (mut found, mut open) = (vec![], String::new());
    for line in lines {
        match line.strip_suffix('\\') {
            Some(part) => open.push_str(part),
            None => {
                open.push_str(line);
                let whole = std::mem::take(&mut open);
                if let Some((word, rest)) = whole.trim().split_once(' ') {
                    found.push((word.to_owned(), rest.trim().to_owned()));
                }
            }
        }
    }
    assert!(open.is_empty(), "the last line is continued");
    found
}

fn all<'a>(found: &'a [Instruction], word: &str) -> Vec<&'a str> {
    let of_word = found.iter().filter(|(name, _)| name == word);
    of_word.map(|(_, rest)| rest.as_str()).collect()
}

fn one<'a>(found: &'a [Instruction], word: &str) -> &'a str {
    let found = all(found, word);
    assert_eq!(found.len(), 1, "{word}: {found:?}");
    found[0]
}

/// The words of an instruction in exec form, `["a", "b"]`: anything else would run a shell, which keeps signals.
fn exec_form(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: not in exec form: {e}"))
}

/// Sources and destination of a COPY from the directory of the repository; `None` from another stage.
fn copied(rest: &str) -> Option<(Vec<&str>, &str)> {
    if rest.contains("--from=") {
        return None;
    }
    let mut words: Vec<&str> = rest.split(' ').filter(|word| !word.starts_with("--")).collect();
    let to = words.pop().unwrap();
    Some((words, to))
}

/// Whether .dockerignore leaves a path out: the last line that matches it or one of its parents decides.
fn is_ignored(path: &str) -> bool {
    let text = std::fs::read_to_string(root().join(".dockerignore")).unwrap();
    let mut ignored = false;
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (pattern, verdict) = match line.strip_prefix('!') {
            Some(pattern) => (pattern, false),
            None => (line, true),
        };
        if pattern == "*" || path == pattern || path.starts_with(&format!("{pattern}/")) {
            ignored = verdict;
        }
    }
    ignored
}

/// `name = "value"` in a manifest.
fn manifest_value(manifest: &str, name: &str) -> String {
    let text = std::fs::read_to_string(root().join(manifest)).unwrap();
    let prefix = format!("{name} = \"");
    let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
    value.unwrap().trim_end_matches('"').to_owned()
}

#[test]
fn everything_that_is_copied_is_there_and_not_ignored() {
    let found = instructions();
    let mut count = 0;
    for (sources, _) in all(&found, "COPY").into_iter().filter_map(copied) {
        for source in sources {
            assert!(
                root().join(source).exists(),
                "{source} is copied and is not there"
            );
            assert!(!is_ignored(source), "{source} is copied and ignored");
            count += 1;
        }
    }
    assert!(count >= 8, "only {count} sources");
    for left_out in [".git", "target", "tests/src/lib.rs", "docs", "alluvium-data"] {
        assert!(is_ignored(left_out), "{left_out} is sent to the builder");
    }
}

/// Copies the way the build stage does, before it builds anything: cargo must find a target for each that is named,
/// and the lock file must be right.
#[test]
fn cargo_accepts_the_layer_of_dependencies() {
    let directory = tempfile::tempdir().unwrap();
    let mut is_built = false;
    for (word, rest) in instructions() {
        match word.as_str() {
            "COPY" => {
                let Some((sources, to)) = copied(&rest) else {
                    continue;
                };
                for source in sources {
                    let name = Path::new(source).file_name().unwrap();
                    let to = directory.path().join(to).join(name);
                    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                    std::fs::copy(root().join(source), to).unwrap();
                }
            }
            "RUN" if rest.starts_with("cargo ") => {
                assert!(rest.contains("--locked"), "{rest}");
                is_built = true;
                break;
            }
            "RUN" => {
                let status = Command::new("sh")
                    .args(["-ec", &rest])
                    .current_dir(directory.path())
                    .status();
                assert!(status.unwrap().success(), "{rest}");
            }
            _ => {}
        }
    }
    assert!(is_built, "nothing is built");
    // Only the packages of this machine have been fetched.
    let about = Command::new("rustc").arg("-vV").output().unwrap();
    let about = String::from_utf8(about.stdout).unwrap();
    let host = about
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .unwrap();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let metadata = Command::new(cargo)
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .args(["--filter-platform", host])
        .current_dir(directory.path())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&metadata.stderr);
    assert!(metadata.status.success(), "{errors}");
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let alluvium = packages
        .iter()
        .find(|package| package["name"] == "alluvium")
        .unwrap();
    let targets = alluvium["targets"].as_array().unwrap();
    assert!(
        targets
            .iter()
            .any(|target| target["name"] == "alluvium" && target["kind"][0] == "bin")
    );
}

#[test]
fn versions_and_stages_fit_together() {
    let found = instructions();
    let args: BTreeMap<&str, &str> = all(&found, "ARG")
        .into_iter()
        .filter_map(|arg| arg.split_once('='))
        .collect();
    assert_eq!(args["RUST"], manifest_value("Cargo.toml", "rust-version"));
    let stages = all(&found, "FROM");
    assert_eq!(
        stages,
        ["rust:${RUST}-${DEBIAN} AS build", "debian:${DEBIAN}-slim"],
        "one C library"
    );
    let from: Vec<&str> = all(&found, "COPY")
        .into_iter()
        .filter(|rest| rest.contains("--from="))
        .collect();
    assert!(from.iter().all(|rest| rest.contains("--from=build")), "{from:?}");
    let binary = from
        .iter()
        .find(|rest| rest.contains("alluvium /usr/local/bin/alluvium"))
        .unwrap();
    assert!(binary.contains(" /src/target/release/alluvium "), "{binary}");
    assert_eq!(all(&found, "WORKDIR")[0], "/src");
}

#[test]
fn the_broker_is_process_one_and_nobody_special() {
    let found = instructions();
    assert_eq!(exec_form(one(&found, "ENTRYPOINT")), ["alluvium"]);
    assert_eq!(exec_form(one(&found, "CMD")), ["serve"]);
    let (_, command) = one(&found, "HEALTHCHECK").split_once("CMD ").unwrap();
    assert_eq!(exec_form(command), ["alluvium", "health"]);
    assert_eq!(one(&found, "STOPSIGNAL"), "SIGTERM");
    let user = one(&found, "USER");
    let (uid, gid) = user.split_once(':').unwrap();
    assert!(uid.parse::<u32>().unwrap() > 0 && gid.parse::<u32>().unwrap() > 0);
    let owned = format!("--chown={user}");
    let data = all(&found, "COPY")
        .into_iter()
        .find(|rest| rest.contains(&owned))
        .unwrap();
    assert!(data.ends_with(&format!(" {}", one(&found, "VOLUME"))), "{data}");
    // Kubernetes and people look for a number, and the last word counts.
    let last = found.iter().rposition(|(word, _)| word == "USER");
    let run = found
        .iter()
        .rposition(|(word, _)| word == "RUN" || word == "FROM");
    assert!(
        last > run,
        "something runs as the broker's user, or it is not the last"
    );
}

/// The settings that the image brings, on addresses and in a directory of this machine.
fn as_in_the_image(directory: &Path, http: &str) -> (PathBuf, String) {
    let found = instructions();
    let (from, to) = all(&found, "COPY")
        .into_iter()
        .filter_map(copied)
        .find(|(_, to)| to.ends_with("server.properties"))
        .map(|(sources, to)| (sources[0].to_owned(), to.to_owned()))
        .unwrap();
    assert!(all(&found, "ENV").contains(&format!("ALLUVIUM_CONFIG={to}").as_str()));
    let text = std::fs::read_to_string(root().join(from)).unwrap();
    let volume = one(&found, "VOLUME");
    assert!(text.contains(&format!("store.url=file://{volume}\n")), "{text}");
    let here = text.replace(volume, directory.join("data").to_str().unwrap());
    let here = here.replace("0.0.0.0:9464", http);
    let path = directory.join("server.properties");
    std::fs::write(&path, here).unwrap();
    (path, text)
}

#[test]
fn ports_are_those_of_the_settings() {
    let directory = tempfile::tempdir().unwrap();
    let (_, text) = as_in_the_image(directory.path(), "127.0.0.1:1");
    let ports: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("listen") && !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(':'))
        .map(|(_, port)| port)
        .collect();
    assert_eq!(
        one(&instructions(), "EXPOSE").split(' ').collect::<Vec<_>>(),
        ports
    );
    assert_eq!(
        text.matches("0.0.0.0").count(),
        2,
        "a container listens on all of its addresses"
    );
    // The defaults have the same ports: what is written of one is true of the other.
    let configuration = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    for (setting, port) in ["| `listeners` |", "| `http.listen` |"].iter().zip(ports) {
        let row = configuration
            .lines()
            .find(|line| line.starts_with(setting))
            .unwrap();
        assert!(row.contains(&format!(":{port} |")), "{row}");
    }
}

/// The health check says no before there is a broker, yes while it is ready, and no when it has stopped.
#[test]
fn a_broker_with_the_settings_of_the_image_is_healthy() {
    let directory = tempfile::tempdir().unwrap();
    let http = broker::free_address().to_string();
    let (config, _) = as_in_the_image(directory.path(), &http);
    let env = [("ALLUVIUM_CONFIG".to_owned(), config.to_str().unwrap().to_owned())];
    let healthy = || broker::run(&["health"], &env, Duration::from_secs(30));
    let output = healthy();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.starts_with(&format!("alluvium: http://{http}/readyz: ")),
        "{errors}"
    );

    let mut options = BrokerOptions::on(format!("file://{}", directory.path().join("data").display()));
    options.env.extend(env.clone());
    let mut running = Broker::prepare(options);
    running.set_http(http.parse().unwrap());
    running.launch();
    let output = healthy();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n");
    // What a container runtime does to process 1.
    running.terminate();
    assert_eq!(healthy().status.code(), Some(1));
}

/// The way of configuring that people bring along from Kafka's image.
#[test]
fn variables_of_the_official_kafka_image_configure_it() {
    let directory = tempfile::tempdir().unwrap();
    let (config, _) = as_in_the_image(directory.path(), "127.0.0.1:1");
    let env = [
        ("ALLUVIUM_CONFIG", config.to_str().unwrap()),
        ("KAFKA_LISTENERS", "PLAINTEXT://127.0.0.1:9999"),
        ("KAFKA_LOG_RETENTION_MS", "5000"),
        ("KAFKA_HEAP_OPTS", "-Xmx1g"),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let output = broker::run(&["config", "--json"], &env, Duration::from_secs(30));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("PLAINTEXT://127.0.0.1:9999"), "{text}");
    assert!(text.contains("environment KAFKA_LOG_RETENTION_MS"), "{text}");
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
