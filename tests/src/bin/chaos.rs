//! Runs chaos for as long as one likes:
//! `cargo build --release --workspace --bin alluvium --bin chaos && target/release/chaos --minutes 60`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use alluvium_tests::chaos::{Settings, StoreChoice, clients_missing, logs_of, run};
use clap::Parser;

/// Lets real brokers on one store be killed, frozen and cut off while clients write and read, and checks everything
/// that the clients were told.
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Arguments {
    /// Minutes for which faults strike
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// So many rounds of kill and restart instead; the manifest must then be as small as before
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Brokers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    brokers: u32,
    /// Decides every fault; drawn and printed when it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// fake, minio or a URL (AWS_ENDPOINT_URL must then be a plain http:// address)
    #[arg(long, default_value = "fake")]
    store: String,
    /// Latencies of the fake
    #[arg(
        long,
        value_name = "KIND=MS,...",
        default_value = "put=30/90,get=15/45,list=30,delete=15"
    )]
    latency: String,
    /// Longest single fault in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    longest: f64,
    /// Records per second of all producers, about
    #[arg(long, default_value_t = 400)]
    rate: u32,
    /// Let a producer and a group on librdkafka take part (tests/clients/install.sh python)
    #[arg(long)]
    clients: bool,
    /// An older alluvium that takes turns with this one, on a bucket that it has made (tests/other-version.sh)
    #[arg(long, value_name = "PATH")]
    other: Option<PathBuf>,
}

impl Arguments {
    fn settings(&self, seed: u64) -> Settings {
        Settings {
            seed,
            brokers: self.brokers as usize,
            length: Duration::from_secs_f64((self.minutes * 60.0).max(0.0)),
            rounds: self.rounds,
            longest: Duration::from_secs_f64(self.longest.max(0.0)),
            store: match self.store.as_str() {
                "fake" => StoreChoice::Fake(self.latency.clone()),
                "minio" => StoreChoice::Minio,
                url => StoreChoice::Url(url.to_owned()),
            },
            rate: self.rate,
            clients: self.clients,
            other: self.other.clone(),
            logs: logs_of(seed),
        }
    }

    /// The command that runs this again.
    fn command_line(&self, seed: u64) -> String {
        let length = match self.rounds {
            Some(rounds) => format!("--rounds {rounds}"),
            None => format!("--minutes {}", self.minutes),
        };
        let clients = if self.clients { " --clients" } else { "" };
        let other = self.other.as_ref();
        let other = other.map_or_else(String::new, |path| format!(" --other {}", path.display()));
        format!(
            "chaos {length} --brokers {} --store {} --latency {} --longest {} --rate {}{clients}{other} --seed {seed}",
            self.brokers, self.store, self.latency, self.longest, self.rate
        )
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    if arguments.clients
        && let Some(missing) = clients_missing()
    {
        eprintln!("chaos: {missing}");
        return ExitCode::FAILURE;
    }
    println!("{}", arguments.command_line(seed));
    match run(&arguments.settings(seed)) {
        Ok(summary) => {
            print!("{summary}");
            println!("nothing was lost, doubled or reordered");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            eprintln!("again: {}", arguments.command_line(seed));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_a_command_that_it_understands() {
        let given = "chaos --minutes 1.5 --store minio --clients --other /old/alluvium";
        let arguments = Arguments::parse_from(given.split(' '));
        let again = Arguments::parse_from(arguments.command_line(7).split(' '));
        assert_eq!(again.seed, Some(7));
        assert_eq!(again.command_line(7), arguments.command_line(7));
        assert_eq!(again.settings(7).store, StoreChoice::Minio);
        assert_eq!(again.settings(7).length, Duration::from_secs(90));
    }
}
