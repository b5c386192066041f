//! `/_fake/...`: counters, faults and outages for scripts that drive the fake from outside.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};

use super::body::{Cut, Reply};
use super::faults::{Rule, RuleText};
use super::server::{Shared, respond};
use super::{Latencies, Outage};

/// Paths below it are not S3.
pub(crate) const PREFIX: &str = "/_fake/";

const BODY_BYTES_MAX: usize = 1024 * 1024;

pub(crate) async fn answer(shared: &Shared, request: Request<Incoming>) -> Result<Response<Reply>, Cut> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX)
        .collect()
        .await
        .map_err(|_| Cut)?
        .to_bytes();
    let name = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let (status, value) = match dispatch(shared, &parts.method, name, &body) {
        Ok(value) => (StatusCode::OK, value),
        Err((status, error)) => (status, json!({ "error": error })),
    };
    let text = format!("{value:#}\n");
    Ok(respond(
        status,
        Reply::whole(Bytes::from(text)),
        &[(header::CONTENT_TYPE, "application/json")],
    ))
}

fn dispatch(
    shared: &Shared,
    method: &Method,
    name: &str,
    body: &[u8],
) -> Result<Value, (StatusCode, String)> {
    let bad = |error: String| (StatusCode::BAD_REQUEST, error);
    let set = *method == Method::PUT || *method == Method::POST;
    match name {
        "counts" => {
            if *method == Method::DELETE {
                shared.counts.lock().reset();
            }
            Ok(counts(shared))
        }
        "faults" => {
            if set {
                let rules = parse_rules(body).map_err(bad)?;
                shared.plan.lock().rules = rules;
            } else if *method == Method::DELETE {
                shared.plan.lock().rules.clear();
            }
            let plan = shared.plan.lock();
            let rules = plan.rules.iter().map(|rule| {
                let text: Value = serde_json::from_str(rule.text()).unwrap_or(Value::Null);
                json!({ "rule": text, "fired": rule.fired() })
            });
            Ok(rules.collect())
        }
        "latency" => {
            if set {
                let latencies: Latencies = text(body).and_then(|text| text.parse()).map_err(bad)?;
                shared.plan.lock().latencies = latencies;
            }
            Ok(json!({ "latency": shared.plan.lock().latencies.to_string() }))
        }
        "outage" => {
            if set {
                let outage = Outage::parse(&text(body).map_err(bad)?).map_err(bad)?;
                shared.outage.send_replace(outage);
            } else if *method == Method::DELETE {
                shared.outage.send_replace(None);
            }
            let outage = *shared.outage.borrow();
            Ok(json!({ "outage": outage.map_or("off", Outage::name) }))
        }
        "objects" => {
            let keys = shared.buckets.lock().keys(&shared.bucket, "");
            Ok(keys
                .into_iter()
                .map(|(key, bytes)| json!({ "key": key, "bytes": bytes }))
                .collect())
        }
        _ => match name.strip_prefix("object/") {
            Some(key) => {
                let found = shared.buckets.lock().get(&shared.bucket, key);
                let content = found
                    .map_err(|_| (StatusCode::NOT_FOUND, format!("no object {key}")))?
                    .content;
                let text = std::str::from_utf8(&content);
                let text = text.map_err(|_| bad(format!("{key} is not text")))?;
                Ok(json!({ "key": key, "bytes": content.len(), "text": text }))
            }
            None => Err((
                StatusCode::NOT_FOUND,
                "known: counts, faults, latency, outage, objects, object/KEY".to_owned(),
            )),
        },
    }
}

fn text(body: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(body).map_err(|_| "the body is not UTF-8".to_owned())?;
    Ok(text.trim().to_owned())
}

fn counts(shared: &Shared) -> Value {
    let (objects, bytes) = {
        let buckets = shared.buckets.lock();
        (buckets.object_count(), buckets.bytes())
    };
    let mut value = serde_json::to_value(&*shared.counts.lock()).unwrap_or(Value::Null);
    value["objects"] = json!(objects);
    value["bytes_stored"] = json!(bytes);
    value
}

/// A JSON array of rules, each an object or a string of `name=value` pairs.
fn parse_rules(body: &[u8]) -> Result<Vec<Rule>, String> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Object(RuleText),
    }
    let rules: Vec<Either> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let parsed = rules.into_iter().map(|rule| match rule {
        Either::Text(text) => text.parse(),
        Either::Object(rule) => rule.try_into(),
    });
    parsed.collect()
}
