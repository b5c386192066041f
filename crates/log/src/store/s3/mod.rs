//! S3 and what speaks its API, set up the way AWS's own tools are.
//!
//! **Settings** come from the usual variables: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` (an `http://`
//! endpoint is spoken to in plain HTTP), `AWS_REGION` or `AWS_DEFAULT_REGION` (then the profile's; `us-east-1`
//! if there is an endpoint), `AWS_VIRTUAL_HOSTED_STYLE_REQUEST=true` (otherwise path style), and the others
//! that `object_store` knows, `AWS_PROXY_URL` or `AWS_SSE_...` for example.
//!
//! **Credentials**: what was chosen by hand comes before what the surroundings offer, and the first source
//! that is configured is the one that is used:
//!
//! 1. `AWS_SKIP_SIGNATURE=true`: none;
//! 2. `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (`AWS_SESSION_TOKEN`);
//! 3. the profile that `AWS_PROFILE` names, by aws-config: keys, roles, SSO, `credential_process`;
//! 4. `AWS_WEB_IDENTITY_TOKEN_FILE` and `AWS_ROLE_ARN` (IAM roles for service accounts);
//! 5. `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` or `..._FULL_URI` (ECS tasks, EKS pod identity);
//! 6. the default profile, if there is a shared config or credentials file;
//! 7. the instance's role.
//!
//! **Answers** that turn the caller away, whatever the object, are errors of type [`refusal::Refusal`].

mod answers;
mod profile;
pub(super) mod refusal;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use object_store::aws::{
    AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredentialProvider, S3ConditionalPut,
};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use url::Url;

use super::AttemptLimits;
use super::reason::one_line;
use refusal::{Caller, Refusal};

/// How long credentials may take to come before the store counts as not configured.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest request that the bulk client gives the time for.
const BULK_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// The largest conditional write that the conditional client gives the time for; the time-out of each
/// attempt is shorter and set by who makes it.
const CONDITIONAL_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// The variables that matter here.
pub(super) type Environment = BTreeMap<String, String>;

/// The two clients of a bucket.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) bulk: AmazonS3,
    pub(super) conditional: AmazonS3,
}

/// Where credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    None,
    Keys,
    /// The named profile, or the default one.
    Profile(Option<String>),
    WebIdentity,
    Container,
    Instance,
}

impl Credentials {
    /// Where they come from, in words.
    fn origin(&self) -> String {
        match self {
            Credentials::None => "(none: AWS_SKIP_SIGNATURE is set)".to_owned(),
            Credentials::Keys => "from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned(),
            Credentials::Profile(name) => format!("from profile '{}'", name.as_deref().unwrap_or("default")),
            Credentials::WebIdentity => "of the role in AWS_ROLE_ARN".to_owned(),
            Credentials::Container => "of the container's role".to_owned(),
            Credentials::Instance => "of the instance's role".to_owned(),
        }
    }

    /// What to do when they have expired.
    fn renewal(&self) -> &'static str {
        match self {
            Credentials::None | Credentials::Keys => {
                "a process keeps those of its environment: restart it with new ones, or give it a role or a profile, \
                 which can be renewed while it runs"
            }
            Credentials::Profile(_) => {
                "renew them (`aws sso login`, or whatever writes the profile), and they are read again"
            }
            Credentials::WebIdentity | Credentials::Container | Credentials::Instance => {
                "they should have been renewed by themselves: check the role, and the clock of this machine"
            }
        }
    }
}

/// What the variables say.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    endpoint: Option<String>,
    virtual_hosted: bool,
    region: Option<String>,
    credentials: Credentials,
}

/// The variables of this process.
pub(super) fn environment() -> Environment {
    let wanted = |key: &str| key.starts_with("AWS_") || key == "HOME";
    let text = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((key.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os()
        .filter_map(text)
        .filter(|(key, value)| wanted(key) && !value.is_empty())
        .collect()
}

/// Makes the clients and fetches credentials once, so that a missing one is found now. The error says what to
/// set.
pub(super) async fn connect(
    bucket: &str,
    environment: &Environment,
    limits: &AttemptLimits,
) -> Result<Clients, String> {
    let mut plan = Plan::new(bucket, environment, has_shared_files(environment))?;
    let mut provider = None;
    let stale = Arc::new(AtomicBool::new(false));
    if let Credentials::Profile(name) = &plan.credentials {
        let profile = profile::Profile::load(name.clone(), plan.region.clone(), stale.clone()).await;
        plan.region = plan.region.or_else(|| profile.region().map(str::to_owned));
        provider = Some(Arc::new(profile) as AwsCredentialProvider);
    }
    let region = match (&plan.region, &plan.endpoint) {
        (Some(region), _) => region.clone(),
        (None, Some(_)) => "us-east-1".to_owned(),
        (None, None) => {
            return Err(
                "no region is known: set AWS_REGION (or AWS_DEFAULT_REGION, or region in the profile); \
                        for another service than AWS set AWS_ENDPOINT_URL"
                    .to_owned(),
            );
        }
    };
    let caller = Arc::new(Caller {
        bucket: bucket.to_owned(),
        region: region.clone(),
        endpoint: plan.endpoint.clone(),
        credentials: plan.credentials.clone(),
    });
    let setup = |retry, bytes, provider| {
        let builder = builder(bucket, environment, &plan, limits, bytes)?;
        let mut builder = builder
            .with_region(&region)
            .with_retry(retry)
            .with_http_connector(answers::Connector {
                caller: caller.clone(),
                stale: stale.clone(),
            });
        if let Some(provider) = provider {
            builder = builder.with_credentials(provider);
        }
        builder.build().map_err(|error| one_line(&error))
    };
    let bulk = setup(bulk_retries(limits), BULK_BYTES_MAX, provider)?;
    if plan.credentials != Credentials::None {
        check_credentials(&plan.credentials, &bulk).await?;
    }
    let once = RetryConfig {
        max_retries: 0,
        ..bulk_retries(limits)
    };
    // The same provider, so that credentials are fetched once and with retries.
    let conditional = setup(once, CONDITIONAL_BYTES_MAX, Some(bulk.credentials().clone()))?;
    Ok(Clients { bulk, conditional })
}

fn bulk_retries(limits: &AttemptLimits) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: limits.backoff_min,
            max_backoff: limits.backoff_max,
            base: 2.0,
        },
        max_retries: 6,
        retry_timeout: Duration::from_secs(60),
    }
}

/// A builder with everything but region, retries and credentials from elsewhere.
fn builder(
    bucket: &str,
    environment: &Environment,
    plan: &Plan,
    limits: &AttemptLimits,
    bytes_max: u64,
) -> Result<AmazonS3Builder, String> {
    let mut builder = AmazonS3Builder::new();
    let mut client = ClientOptions::new();
    for (name, value) in environment {
        match name.to_ascii_lowercase().parse() {
            Ok(AmazonS3ConfigKey::Client(key)) => client = client.with_config(key, value),
            Ok(key) => builder = builder.with_config(key, value),
            Err(_) => {}
        }
    }
    let agent = concat!("alluvium/", env!("CARGO_PKG_VERSION"));
    if let Ok(agent) = agent.parse() {
        client = client.with_user_agent(agent);
    }
    client = client
        .with_connect_timeout(limits.connect_timeout)
        .with_timeout(limits.timeout(bytes_max));
    if let Some(endpoint) = &plan.endpoint {
        client = client.with_allow_http(endpoint.starts_with("http://"));
        // Both, since the more special one would win.
        builder = builder
            .with_endpoint(endpoint)
            .with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    // After the environment: correctness is no setting.
    Ok(builder
        .with_bucket_name(bucket)
        .with_virtual_hosted_style_request(plan.virtual_hosted)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_unsigned_payload(true)
        .with_client_options(client))
}

async fn check_credentials(source: &Credentials, client: &AmazonS3) -> Result<(), String> {
    let answer = tokio::time::timeout(CREDENTIALS_TIMEOUT, client.credentials().get_credential()).await;
    let error = match answer {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => match Refusal::of(&error) {
            Some(refusal) => return Err(format!("no AWS credentials: {refusal}")),
            None => one_line(&error),
        },
        Err(_) => format!("no answer within {CREDENTIALS_TIMEOUT:?}"),
    };
    Err(match source {
        Credentials::Instance => format!(
            "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a \
             role is attached (the instance metadata service said: {error})"
        ),
        Credentials::Profile(name) => format!(
            "no AWS credentials from profile '{}': {error}; for SSO run `aws sso login`, or set AWS_PROFILE to \
             another",
            name.as_deref().unwrap_or("default")
        ),
        Credentials::WebIdentity => format!(
            "no AWS credentials from the web identity: {error}; check AWS_ROLE_ARN, AWS_WEB_IDENTITY_TOKEN_FILE \
             and the role's trust policy"
        ),
        Credentials::Container => format!(
            "no AWS credentials from the container's endpoint: {error}; check the task role or the pod identity \
             association"
        ),
        Credentials::None | Credentials::Keys => error,
    })
}

impl Plan {
    fn new(bucket: &str, environment: &Environment, shared_files: bool) -> Result<Plan, String> {
        let get = |name: &str| environment.get(name).cloned();
        let virtual_hosted = flag(environment, "AWS_VIRTUAL_HOSTED_STYLE_REQUEST")?;
        let endpoint = match get("AWS_ENDPOINT_URL_S3").or_else(|| get("AWS_ENDPOINT_URL")) {
            Some(endpoint) => Some(endpoint_url(&endpoint, bucket, virtual_hosted)?),
            // The spelling of object_store's own setting.
            None => match get("AWS_ENDPOINT") {
                Some(endpoint) => Some(endpoint_url(&endpoint, bucket, virtual_hosted)?),
                None => None,
            },
        };
        Ok(Plan {
            endpoint,
            virtual_hosted,
            region: get("AWS_REGION").or_else(|| get("AWS_DEFAULT_REGION")),
            credentials: credentials(environment, shared_files)?,
        })
    }
}

fn credentials(environment: &Environment, shared_files: bool) -> Result<Credentials, String> {
    let has = |name: &str| environment.contains_key(name);
    let missing =
        |name: &str, other: &str| Err(format!("{other} is set, but {name} is not: set both or none"));
    if flag(environment, "AWS_SKIP_SIGNATURE")? {
        return Ok(Credentials::None);
    }
    match (has("AWS_ACCESS_KEY_ID"), has("AWS_SECRET_ACCESS_KEY")) {
        (true, true) => return Ok(Credentials::Keys),
        (true, false) => return missing("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        (false, true) => return missing("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        (false, false) => {}
    }
    if let Some(name) = environment.get("AWS_PROFILE") {
        return Ok(Credentials::Profile(Some(name.clone())));
    }
    if has("AWS_WEB_IDENTITY_TOKEN_FILE") {
        return match has("AWS_ROLE_ARN") {
            true => Ok(Credentials::WebIdentity),
            false => missing("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"),
        };
    }
    if has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        return Ok(Credentials::Container);
    }
    if has("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        return match has("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
            true => Ok(Credentials::Container),
            false => missing(
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            ),
        };
    }
    Ok(if shared_files {
        Credentials::Profile(None)
    } else {
        Credentials::Instance
    })
}

fn flag(environment: &Environment, name: &str) -> Result<bool, String> {
    match environment
        .get(name)
        .map(|value| value.to_ascii_lowercase())
        .as_deref()
    {
        None | Some("false" | "0" | "no" | "off") => Ok(false),
        Some("true" | "1" | "yes" | "on") => Ok(true),
        Some(value) => Err(format!("{name}='{value}': expected true or false")),
    }
}

/// The endpoint as the client wants it: with the bucket in the host name if requests are virtual-hosted.
fn endpoint_url(endpoint: &str, bucket: &str, virtual_hosted: bool) -> Result<String, String> {
    let wrong = |why: &str| {
        format!("AWS_ENDPOINT_URL='{endpoint}': {why}, expected something like http://localhost:9000")
    };
    let mut url = Url::parse(endpoint).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "AWS_ENDPOINT_URL holds credentials; use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned(),
        );
    }
    let host = url.host_str().ok_or_else(|| wrong("no host"))?.to_owned();
    if virtual_hosted && !host.starts_with(&format!("{bucket}.")) {
        url.set_host(Some(&format!("{bucket}.{host}")))
            .map_err(|error| wrong(&error.to_string()))?;
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn has_shared_files(environment: &Environment) -> bool {
    let named = ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"]
        .map(|name| environment.get(name).map(PathBuf::from));
    let home = environment
        .get("HOME")
        .map(|home| PathBuf::from(home).join(".aws"));
    let usual = ["config", "credentials"].map(|file| home.as_ref().map(|home| home.join(file)));
    named
        .into_iter()
        .chain(usual)
        .flatten()
        .any(|path| path.is_file())
}

#[cfg(test)]
mod tests;
