//! Credentials of a profile in AWS's shared files (keys, roles, SSO, `credential_process`), by aws-config.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Credentials are fetched anew when less than this is left of them: a request takes a while, and a fetch may
/// fail for some time.
const RENEW_BEFORE_EXPIRY: Duration = Duration::from_secs(300);

/// How soon a source is asked again that gives credentials that have nearly expired, or are refused.
const RENEW_INTERVAL_MIN: Duration = Duration::from_secs(10);

/// A profile as a source of credentials, kept until they are about to expire, or the store refuses them: what writes the
/// shared files may have renewed them there, and not everything tells when they expire.
pub(super) struct Profile {
    /// Name, and region unless the profile has its own; `None` if the source does not come from the shared files.
    named: Option<(Option<String>, Option<String>)>,
    region: Option<String>,
    /// Set by who sees the store refuse what was given.
    stale: Arc<AtomicBool>,
    state: Mutex<State>,
}

struct State {
    source: Box<dyn ProvideCredentials>,
    kept: Option<Kept>,
}

struct Kept {
    credential: Arc<AwsCredential>,
    fetched: Instant,
    /// `None`: they do not expire.
    renew_at: Option<Instant>,
}

impl Profile {
    /// The profile of this name (the default one if `None`), with `region` for its calls of SSO and STS unless
    /// the profile has its own. Nothing is fetched yet. Whoever sees credentials refused sets `stale`.
    pub(super) async fn load(
        name: Option<String>,
        region: Option<String>,
        stale: Arc<AtomicBool>,
    ) -> Profile {
        let (source, own) = Profile::open(name.as_deref(), region.as_deref()).await;
        Profile {
            named: Some((name, region)),
            region: own,
            stale,
            state: Mutex::new(State { source, kept: None }),
        }
    }

    /// The source, which reads the shared files once, and the region that the profile names.
    async fn open(name: Option<&str>, region: Option<&str>) -> (Box<dyn ProvideCredentials>, Option<String>) {
        let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
        let config = ProviderConfig::without_region().with_http_client(http.build_https());
        let mut finder = ProfileFileRegionProvider::builder().configure(&config);
        let mut source = ProfileFileCredentialsProvider::builder();
        if let Some(name) = name {
            finder = finder.profile_name(name);
            source = source.profile_name(name);
        }
        let own = finder.build().region().await;
        let asked = region.map(|region| aws_config::Region::new(region.to_owned()));
        let config = config.with_region(asked.or_else(|| own.clone()));
        let source: Box<dyn ProvideCredentials> = Box::new(source.configure(&config).build());
        (source, own.map(|region| region.to_string()))
    }

    /// The region that the profile names.
    pub(super) fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    #[cfg(test)]
    pub(super) fn of_source(source: impl ProvideCredentials + 'static, stale: Arc<AtomicBool>) -> Profile {
        let source = Box::new(source);
        Profile {
            named: None,
            region: None,
            stale,
            state: Mutex::new(State { source, kept: None }),
        }
    }
}

#[async_trait]
impl CredentialProvider for Profile {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        // Held while fetching, so that many requests make one fetch.
        let mut state = self.state.lock().await;
        let stale = self.stale.swap(false, Ordering::Relaxed);
        if let Some(kept) = &state.kept {
            let now = Instant::now();
            // As long as they are refused, that is said again.
            let again = stale && now.saturating_duration_since(kept.fetched) >= RENEW_INTERVAL_MIN;
            if !again && kept.renew_at.is_none_or(|renew_at| now < renew_at) {
                return Ok(kept.credential.clone());
            }
            if again && let Some((name, region)) = &self.named {
                state.source = Profile::open(name.as_deref(), region.as_deref()).await.0;
            }
        }
        match state.source.provide_credentials().await {
            Ok(fetched) => {
                let renew_at = renewal(&fetched).map(|left| Instant::now() + left);
                let credential = Arc::new(AwsCredential {
                    key_id: fetched.access_key_id().to_owned(),
                    secret_key: fetched.secret_access_key().to_owned(),
                    token: fetched.session_token().map(str::to_owned),
                });
                state.kept = Some(Kept {
                    credential: credential.clone(),
                    fetched: Instant::now(),
                    renew_at,
                });
                Ok(credential)
            }
            Err(error) => {
                let text = with_sources(&error);
                Err(object_store::Error::Generic {
                    store: "S3",
                    source: text.into(),
                })
            }
        }
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// How long these credentials are kept. Their expiry is a moment of AWS's clock, which only this machine's
/// clock can be compared with; the log's own clock has no part in it.
fn renewal(credentials: &Credentials) -> Option<Duration> {
    let left = match credentials.expiry()?.elapsed() {
        Ok(_) => Duration::ZERO,
        Err(ahead) => ahead.duration(),
    };
    Some(left.saturating_sub(RENEW_BEFORE_EXPIRY).max(RENEW_INTERVAL_MIN))
}

/// aws-config's errors say what happened only in their sources.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
