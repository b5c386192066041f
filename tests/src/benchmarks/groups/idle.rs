//! What a broker costs that nobody uses.

use std::time::Duration;

use super::super::measure::watch_idle;
use super::super::report::{Bound, Column, Section, Target};
use super::super::session::Session;
use super::bucket::Job;
use super::{BENCH, GroupSpec, s3};

const SECTION: &str = "idle.idle";
const WORK: &str = "one idle broker";
/// Until a start has written what it writes.
const SETTLING: Duration = Duration::from_secs(30);

pub(super) const GROUP: GroupSpec = GroupSpec {
    name: "idle",
    title: "Idle",
    about: "A broker with one topic that nobody uses, on a bucket with S3's latency, half a minute after its start.",
    sections: &[Section {
        id: SECTION,
        title: "Requests of an idle broker",
        about: "Measured over three minutes, once: there is nothing to vary.",
        columns: &[
            Column::Value("requests/min", "requests_per_minute", 1),
            Column::Several(
                "PUT / GET / HEAD / LIST per min",
                &[
                    "put_per_minute",
                    "get_per_minute",
                    "head_per_minute",
                    "list_per_minute",
                ],
                1,
            ),
            Column::Value("$/month", "dollars_per_month", 2),
            Column::Value("$/month, three brokers", "dollars_per_month_of_three", 2),
            Column::Value("RSS MB", "rss_mb", 0),
            Column::Value("broker cores", "broker_cores", 4),
        ],
    }],
    targets: &[
        Target {
            says: "Idle: requests per minute",
            section: SECTION,
            work: WORK,
            client: BENCH,
            metric: "requests_per_minute",
            bound: Bound::AtMost(150.0),
        },
        Target {
            says: "Idle: $/month for three brokers",
            section: SECTION,
            work: WORK,
            client: BENCH,
            metric: "dollars_per_month_of_three",
            bound: Bound::AtMost(10.0),
        },
    ],
    run,
};

fn run(session: &mut Session) -> Result<(), String> {
    let job = Job {
        section: SECTION,
        work: WORK,
        verb: "produce",
        arguments: "",
        latency: s3::LATENCY,
        fault: None,
        settings: &[],
    };
    let time = session.scale.time(180);
    let done = job.start(session).and_then(|(store, broker)| {
        let mut client = crate::wire::Client::connect(broker.address()).map_err(|error| error.to_string())?;
        crate::kafka::create_topic(&mut client, "idle", 12, &[]).map_err(|error| error.to_string())?;
        drop(client);
        std::thread::sleep(SETTLING);
        let (metrics, _) = watch_idle(broker.process()?, &store, time)?;
        Ok((String::new(), metrics))
    });
    session.record(&job.key(), done);
    Ok(())
}
