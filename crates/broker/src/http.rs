//! `/metrics`, `/livez` and `/readyz` on `http.listen`.
//!
//! The server runs before the log is open, so that a long recovery is seen as alive and not ready.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::RwLock;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::broker::{Broker, Unready};

/// What the HTTP server shows: a broker from its start to its end.
#[derive(Clone, Default)]
pub(crate) struct Shown {
    serving: Arc<RwLock<Option<Serving>>>,
}

/// A broker and its metrics.
type Serving = (Arc<Broker>, Registry);

impl Shown {
    /// A broker has started; what is shown of an earlier one is forgotten.
    pub(crate) fn started(&self, broker: Arc<Broker>, registry: Registry) {
        *self.serving.write() = Some((broker, registry));
    }

    /// It has ended, and another may start.
    pub(crate) fn ended(&self) {
        let ended = self.serving.write().take();
        // What is dropped may take its time.
        drop(ended);
    }

    /// The metrics as text.
    fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        match &*self.serving.read() {
            Some((_, registry)) => prometheus_client::encoding::text::encode(&mut text, registry)?,
            None => prometheus_client::encoding::text::encode(&mut text, &Registry::default())?,
        }
        Ok(text)
    }

    #[cfg(test)]
    pub(crate) fn metrics(&self) -> String {
        self.encode().unwrap()
    }
}

/// Serves until the task is dropped.
pub(crate) async fn serve(listener: TcpListener, shown: Shown) {
    if let Err(error) = axum::serve(listener, routes(shown)).await {
        tracing::error!(%error, "the HTTP server has ended");
    }
}

/// Binds `http.listen`.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

fn routes(shown: Shown) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(shown)
}

async fn metrics(State(shown): State<Shown>) -> Response {
    match shown.encode() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn readyz(State(shown): State<Shown>) -> Response {
    match &*shown.serving.read() {
        Some((broker, _)) => ready_answer(broker.ready(Instant::now())),
        None => (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
    }
}

fn ready_answer(check: Result<(), Unready>) -> Response {
    match check {
        Ok(()) => "ok\n".into_response(),
        Err(Unready::Draining) => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response(),
        Err(Unready::Store(how)) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the store cannot be used now: {how}\n"),
        )
            .into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn status_line(path: &str) -> String {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, Shown::default()));
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        server.abort();
        answer.lines().next().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_starting_broker_is_alive_and_not_ready() {
        assert_eq!(status_line("/livez").await, "HTTP/1.1 200 OK");
        assert_eq!(status_line("/readyz").await, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(status_line("/metrics").await, "HTTP/1.1 200 OK");
        assert_eq!(status_line("/").await, "HTTP/1.1 404 Not Found");
    }

    #[test]
    fn readiness_is_a_status() {
        assert_eq!(ready_answer(Ok(())).status(), StatusCode::OK);
        assert_eq!(
            ready_answer(Err(Unready::Draining)).status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(
            ready_answer(Err(Unready::Store("gone".into()))).status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
    }
}
