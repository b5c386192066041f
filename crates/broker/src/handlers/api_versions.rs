//! ApiVersions 0-4: what the dispatch table serves, sorted by key.
//!
//! Features are left out: none of those that Kafka announces there exists yet, and announcing
//! `transaction.version` would switch Java clients to a protocol that is not served. Without them no tagged
//! field is written, which older librdkafka could not read.

use std::sync::Arc;

use kafka_wire::api_versions_response::ApiVersion;
use kafka_wire::{ApiVersionsRequest, ApiVersionsResponse};

use crate::broker::{Broker, RequestContext};
use crate::connection::{Outcome, Refusal};
use crate::errors::ErrorCode;
use crate::protocol::{API_VERSIONS, encode_reply};

pub(crate) async fn handle(
    _broker: &Arc<Broker>,
    ctx: &RequestContext,
    request: ApiVersionsRequest,
) -> ApiVersionsResponse {
    let (software, version) = (request.client_software_name, request.client_software_version);
    if ctx.api_version >= 3 && !(is_software_word(&software) && is_software_word(&version)) {
        let mut response = ApiVersionsResponse::default();
        response.error_code = ErrorCode::InvalidRequest.code();
        return response;
    }
    tracing::debug!(
        host = %ctx.client_host,
        client_id = %ctx.client_id,
        software = %software,
        version = %version,
        "client"
    );
    supported(ErrorCode::None)
}

/// The answer, at version 0, to a version that is not known here.
pub(crate) fn unsupported_version(correlation_id: i32) -> Outcome {
    match encode_reply(
        API_VERSIONS,
        0,
        correlation_id,
        &supported(ErrorCode::UnsupportedVersion),
    ) {
        Ok(reply) => Outcome::Reply(reply),
        Err(error) => Outcome::Close(Refusal::Unencodable {
            api: "ApiVersions",
            version: 0,
            error: error.to_string(),
        }),
    }
}

fn supported(error: ErrorCode) -> ApiVersionsResponse {
    let mut response = ApiVersionsResponse::default();
    response.error_code = error.code();
    response.api_keys = crate::dispatch::apis()
        .map(|api| {
            let mut versions = ApiVersion::default();
            versions.api_key = api.key;
            (versions.min_version, versions.max_version) = api.advertised();
            versions
        })
        .collect();
    response
        .api_keys
        .sort_unstable_by_key(|versions| versions.api_key);
    response
}

/// KIP-511: letters and digits, with dots and hyphens between them.
fn is_software_word(text: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_words() {
        for good in ["librdkafka", "2.0.2", "apache-kafka-java", "v1.0.0-rc1", "7"] {
            assert!(is_software_word(good), "{good}");
        }
        for bad in ["", "-a", "a.", "a b", "a/b", "\u{e9}"] {
            assert!(!is_software_word(bad), "{bad}");
        }
    }

    #[test]
    fn keys_are_sorted_and_unique_and_nothing_is_tagged() {
        let response = supported(ErrorCode::None);
        assert!(response.api_keys.is_sorted_by(|a, b| a.api_key < b.api_key));
        assert!(response.supported_features.is_empty() && response.finalized_features.is_empty());
        assert_eq!(response.finalized_features_epoch, -1);
        assert_eq!(response.api_keys[0].api_key, 0);
        assert_eq!(
            (response.api_keys[0].min_version, response.api_keys[0].max_version),
            (0, 13)
        );
    }
}
