//! Looks at the answers of the service below `object_store`, and makes an error of each that is a [`Refusal`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

use super::Credentials;
use super::refusal::{Answer, Call, Caller, Refusal};

/// Every signed request to S3 has it, and no request for credentials does.
const SIGNED: &str = "x-amz-content-sha256";

/// Makes HTTP clients that look at answers.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) caller: Arc<Caller>,
    /// Set when credentials were refused, for who keeps them.
    pub(super) stale: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Looking {
    inner: HttpClient,
    caller: Arc<Caller>,
    stale: Arc<AtomicBool>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Looking {
            inner: ReqwestConnector::default().connect(options)?,
            caller: self.caller.clone(),
            stale: self.stale.clone(),
        }))
    }
}

impl Looking {
    /// What a request asks of S3 or of STS; `None` for the others, whose clients know the answers to expect.
    fn asked(&self, request: &HttpRequest) -> Option<Call> {
        let query = request.uri().query().unwrap_or_default();
        match request.headers().contains_key(SIGNED) || self.caller.credentials == Credentials::None {
            true => Some(Call::of(request.method().as_str(), query)),
            false => Call::of_role(query),
        }
    }
}

#[async_trait]
impl HttpService for Looking {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let call = self.asked(&request);
        let response = self.inner.execute(request).await?;
        let status = response.status().as_u16();
        let has_location = response.headers().contains_key("location");
        let Some(call) = call.filter(|call| call.may_be_refused(status, has_location)) else {
            return Ok(response);
        };
        let (parts, body) = response.into_parts();
        let body = body.bytes().await?;
        let region = parts.headers.get("x-amz-bucket-region");
        let text = String::from_utf8_lossy(&body);
        let answer = Answer {
            status,
            region: region.and_then(|region| region.to_str().ok()),
            body: &text,
        };
        match Refusal::read(call, answer, &self.caller) {
            None => Ok(HttpResponse::from_parts(parts, body.into())),
            Some(refusal) => {
                if refusal.is_of_credentials() {
                    self.stale.store(true, Ordering::Relaxed);
                }
                // Of the kinds of errors, the one that is not repeated: the answer would be the same.
                Err(HttpError::new(HttpErrorKind::Unknown, refusal))
            }
        }
    }
}
