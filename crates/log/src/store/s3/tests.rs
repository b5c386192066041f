use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_credential_types::provider::{self, ProvideCredentials};
use object_store::CredentialProvider;

use super::*;

fn environment_of(variables: &[(&str, &str)]) -> Environment {
    variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "secret")];

#[test]
fn credentials_chosen_by_hand_come_before_what_the_surroundings_offer() {
    let chosen = |variables: &[(&str, &str)], files| credentials(&environment_of(variables), files);
    let profile = |name: &str| Ok(Credentials::Profile(Some(name.to_owned())));
    let mut all = vec![
        ("AWS_SKIP_SIGNATURE", "true"),
        KEYS[0],
        KEYS[1],
        ("AWS_PROFILE", "work"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"),
        ("AWS_ROLE_ARN", "arn"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x"),
    ];
    assert_eq!(chosen(&all, true), Ok(Credentials::None));
    all.remove(0);
    assert_eq!(chosen(&all, true), Ok(Credentials::Keys));
    all.drain(..2);
    assert_eq!(chosen(&all, true), profile("work"));
    all.remove(0);
    assert_eq!(chosen(&all, true), Ok(Credentials::WebIdentity));
    all.drain(..2);
    assert_eq!(chosen(&all, true), Ok(Credentials::Container));
    let pod = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/token"),
    ];
    assert_eq!(chosen(&pod, true), Ok(Credentials::Container));
    assert_eq!(chosen(&[], true), Ok(Credentials::Profile(None)));
    assert_eq!(chosen(&[], false), Ok(Credentials::Instance));
    for half in [KEYS[0], KEYS[1], ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"), pod[0]] {
        let problem = chosen(&[half], true).unwrap_err();
        assert!(
            problem.contains(half.0) && problem.contains("is not: set both or none"),
            "{problem}"
        );
    }
    assert!(
        chosen(&[("AWS_SKIP_SIGNATURE", "maybe")], true)
            .unwrap_err()
            .contains("expected true or false")
    );
}

#[test]
fn endpoints() {
    let plan = |variables: &[(&str, &str)]| Plan::new("bucket", &environment_of(variables), false);
    let endpoint = |variables: &[(&str, &str)]| plan(variables).map(|plan| plan.endpoint.unwrap_or_default());
    assert_eq!(endpoint(&[]), Ok(String::new()));
    assert_eq!(
        endpoint(&[("AWS_ENDPOINT_URL", "http://localhost:9000/")]),
        Ok("http://localhost:9000".to_owned())
    );
    let both = [
        ("AWS_ENDPOINT_URL", "http://other"),
        ("AWS_ENDPOINT_URL_S3", "https://s3.example/path"),
    ];
    assert_eq!(endpoint(&both), Ok("https://s3.example/path".to_owned()));
    let virtual_hosted = ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true");
    for given in ["http://s3.local:9000", "http://bucket.s3.local:9000"] {
        let found = endpoint(&[virtual_hosted, ("AWS_ENDPOINT_URL", given)]);
        assert_eq!(found, Ok("http://bucket.s3.local:9000".to_owned()));
    }
    for wrong in [
        "localhost:9000",
        "ftp://x",
        "http://",
        "no url",
        "http://u:hunter2@x",
    ] {
        let problem = plan(&[("AWS_ENDPOINT_URL", wrong)]).unwrap_err();
        assert!(
            problem.contains("AWS_ENDPOINT_URL") && !problem.contains("hunter2"),
            "{problem}"
        );
    }
    let regions = [
        ("AWS_DEFAULT_REGION", "eu-west-1"),
        ("AWS_REGION", "eu-central-1"),
    ];
    assert_eq!(plan(&regions).unwrap().region.as_deref(), Some("eu-central-1"));
    assert_eq!(plan(&regions[..1]).unwrap().region.as_deref(), Some("eu-west-1"));
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_said_with_what_to_set() {
    let limits = AttemptLimits::default();
    let problem = async |variables: &[(&str, &str)]| {
        connect("bucket", &environment_of(variables), &limits)
            .await
            .map(drop)
            .unwrap_err()
    };
    let line = problem(&KEYS).await;
    assert!(line.contains("no region is known: set AWS_REGION"), "{line}");
    // A metadata service that refuses the connection.
    let nowhere = [
        ("AWS_REGION", "eu-west-1"),
        ("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1"),
    ];
    let line = problem(&nowhere).await;
    assert!(
        line.contains("no AWS credentials: set AWS_ACCESS_KEY_ID") && !line.contains('\n'),
        "{line}"
    );
}

#[tokio::test]
async fn settings_cannot_turn_off_what_correctness_needs() {
    let mut variables = KEYS.to_vec();
    variables.extend([
        ("AWS_ENDPOINT_URL", "http://localhost:9000"),
        ("AWS_CONDITIONAL_PUT", "disabled"),
        ("AWS_UNSIGNED_PAYLOAD", "false"),
        ("AWS_BUCKET", "another"),
        ("AWS_MAX_RETRIES", "7"),
    ]);
    let environment = environment_of(&variables);
    let plan = Plan::new("bucket", &environment, false).unwrap();
    let limits = AttemptLimits::default();
    let builder = builder("bucket", &environment, &plan, &limits, 0).unwrap();
    let value = |key: AmazonS3ConfigKey| builder.get_config_value(&key).unwrap_or_default();
    assert_eq!(value(AmazonS3ConfigKey::ConditionalPut), "etag");
    assert_eq!(value(AmazonS3ConfigKey::UnsignedPayload), "true");
    assert_eq!(value(AmazonS3ConfigKey::Bucket), "bucket");
    assert_eq!(value("aws_allow_http".parse().unwrap()), "true");
    let clients = connect("bucket", &environment, &limits).await.unwrap();
    assert!(format!("{:?}", clients.conditional).contains("max_retries: 0"));
    assert!(format!("{:?}", clients.bulk).contains("max_retries: 6"));
}

/// Gives credentials with a number that counts the fetches.
#[derive(Debug)]
struct Counting {
    fetched: AtomicUsize,
    lifetime: Option<Duration>,
}

impl ProvideCredentials for Counting {
    fn provide_credentials<'a>(&'a self) -> provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let number = self.fetched.fetch_add(1, Ordering::Relaxed);
        // Far from any real moment: the past for what has expired, else the far future.
        let expiry = self
            .lifetime
            .map(|lifetime| std::time::SystemTime::UNIX_EPOCH + lifetime);
        let fetched = aws_credential_types::Credentials::new(number.to_string(), "s", None, expiry, "test");
        provider::future::ProvideCredentials::ready(Ok(fetched))
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_of_a_profile_are_kept_until_shortly_before_they_expire() {
    const CENTURIES: Duration = Duration::from_secs(300 * 365 * 86400);
    for (lifetime, fetches) in [(None, 1), (Some(CENTURIES), 1), (Some(Duration::ZERO), 2)] {
        let source = Counting {
            fetched: AtomicUsize::new(0),
            lifetime,
        };
        let profile = profile::Profile::of_source(source, Arc::default());
        let mut seen = Vec::new();
        for _ in 0..15 {
            seen.push(profile.get_credential().await.unwrap().key_id.clone());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        seen.dedup();
        assert_eq!(seen.len(), fetches, "{lifetime:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_of_a_profile_that_the_store_refuses_are_fetched_again_after_a_while() {
    let stale = Arc::new(AtomicBool::new(false));
    let source = Counting {
        fetched: AtomicUsize::new(0),
        lifetime: None,
    };
    let profile = profile::Profile::of_source(source, stale.clone());
    let mut fetches = Vec::new();
    for second in 0..25 {
        // Refused from the third second on, until the next ones are there.
        let found = profile.get_credential().await.unwrap().key_id.clone();
        stale.store(second >= 3 && found == "0", Ordering::Relaxed);
        fetches.push(found);
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(fetches.iter().position(|found| found == "1"), Some(10));
    assert_eq!(fetches.last().unwrap(), "1", "once");
}

#[test]
fn a_profile_with_a_credential_process_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    let answer = r#"{"Version":1,"AccessKeyId":"AKIAPROCESS","SecretAccessKey":"s"}"#;
    let text = format!("[profile work]\nregion = eu-north-1\ncredential_process = echo '{answer}'\n");
    std::fs::write(&config, text).unwrap();
    let child = |profile: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::s3::tests::child_with_a_profile",
                "--ignored",
                "--nocapture",
            ])
            .env_clear()
            .env("AWS_CONFIG_FILE", &config)
            .env("AWS_PROFILE", profile)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let output = child("work");
    assert!(
        output.contains("connected with AKIAPROCESS in eu-north-1"),
        "{output}"
    );
    let output = child("nobody");
    assert!(output.contains("no region is known"), "{output}");
}

#[tokio::test]
#[ignore = "run by a_profile_with_a_credential_process_is_used, in an environment of its own"]
async fn child_with_a_profile() {
    match connect("bucket", &environment(), &AttemptLimits::default()).await {
        Ok(clients) => {
            let key_id = clients
                .conditional
                .credentials()
                .get_credential()
                .await
                .unwrap()
                .key_id
                .clone();
            let text = format!("{:?}", clients.conditional);
            let region = text
                .split("region: \"")
                .nth(1)
                .and_then(|rest| rest.split('"').next())
                .unwrap_or_default();
            println!("connected with {key_id} in {region}");
        }
        Err(problem) => println!("{problem}"),
    }
}
