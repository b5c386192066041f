//! A whole broker on a store in memory, and a client that speaks to it through a real connection loop.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use alluvium_log::store::counting::StoreMetrics;
use alluvium_log::store::{Store, StoreKind, StoreOptions};
use alluvium_log::{Clock, Log, SystemClock};
use bytes::{Bytes, BytesMut};
use kafka_wire::{KafkaMessage, OutboundFrameLimits, RequestResponsePair, encode_request};
use kafka_wire_core::{ApiVersion, DecodeLimits, KafkaDecode, KafkaEncode};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::broker::Broker;
use crate::budget::ByteBudget;
use crate::config::{Config, Settings};
use crate::connection::{Ended, serve};
use crate::dispatch::{Dispatcher, Peer};
use crate::frame::{ConnectionLimits, FrameBudgets, FrameReader};
use crate::groups::{Coordinator, WallClock};

/// A broker with the given settings, all else at its default.
pub(crate) async fn broker(pairs: &[(&str, &str)]) -> Arc<Broker> {
    broker_and_store(pairs).await.0
}

/// The same, with the store that others may look at.
pub(crate) async fn broker_and_store(pairs: &[(&str, &str)]) -> (Arc<Broker>, Store) {
    let store = Store::open("memory://", StoreOptions::default()).await.unwrap();
    (broker_on(&store, pairs).await, store)
}

/// A bucket in memory that several brokers share, and what is asked of it.
pub(crate) async fn shared_store() -> (Store, StoreMetrics) {
    let metrics = StoreMetrics::default();
    let options = StoreOptions {
        metrics: Some(metrics.clone()),
        ..StoreOptions::default()
    };
    let mut store = Store::open("memory://", options).await.unwrap();
    store.kind = StoreKind::S3;
    (store, metrics)
}

/// A broker on this store, with the given settings.
pub(crate) async fn broker_on(store: &Store, pairs: &[(&str, &str)]) -> Arc<Broker> {
    let url = match store.kind {
        StoreKind::S3 => "s3://shared",
        _ => "memory://",
    };
    let own = [
        ("store.url", url),
        ("advertised.listeners", "PLAINTEXT://broker.test:9092"),
    ];
    let settings = Settings::from_pairs(own.into_iter().chain(pairs.iter().copied())).unwrap();
    let mut registry = Registry::default();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (options, policies) = crate::history::with_history(&settings, &mut registry).unwrap();
    let log = Log::open(store.clone(), options, Arc::clone(&clock), &mut registry)
        .await
        .unwrap();
    let config = Arc::new(Config::new(settings, log.node_id()));
    policies.follow(Arc::clone(&config), &log);
    let wall: WallClock = Arc::new(move || clock.now_ms());
    let groups = Coordinator::new(log.clone(), Arc::clone(&config), Arc::clone(&wall), &mut registry);
    Arc::new(Broker::new(log, config, groups, wall, &mut registry))
}

/// A client connection.
pub(crate) struct Client {
    stream: DuplexStream,
    next_correlation: i32,
    pub(crate) server: JoinHandle<Ended>,
    pub(crate) budgets: FrameBudgets,
    _stop: watch::Sender<bool>,
}

impl Client {
    pub(crate) fn connect(broker: &Arc<Broker>) -> Client {
        let (stream, server) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(server);
        let budgets = FrameBudgets {
            produce: ByteBudget::new(1 << 26, broker.metrics.produce_budget.clone()),
            other: ByteBudget::new(1 << 24, broker.metrics.request_budget.clone()),
        };
        let limits = ConnectionLimits::new(1 << 26, Duration::from_secs(600));
        let reader = FrameReader::new(reader, limits, budgets.clone());
        let dispatcher = Arc::new(Dispatcher::new(Arc::clone(broker)));
        let peer = Peer::new(0, IpAddr::from([127, 0, 0, 1]), &"PLAINTEXT".into());
        let (stop, stopping) = watch::channel(false);
        let server = tokio::spawn(serve(reader, writer, dispatcher, peer, stopping));
        Client {
            stream,
            next_correlation: 0,
            server,
            budgets,
            _stop: stop,
        }
    }

    /// Sends a request without waiting; returns its correlation id.
    pub(crate) async fn send<R>(&mut self, version: i16, request: &R) -> i32
    where
        R: RequestResponsePair + KafkaEncode,
    {
        self.next_correlation += 1;
        let mut frame = BytesMut::new();
        let limits = OutboundFrameLimits::new(1 << 26);
        let id = self.next_correlation;
        encode_request(
            &mut frame,
            id,
            Some("test".into()),
            request,
            ApiVersion::new(version),
            limits,
        )
        .unwrap();
        self.stream.write_all(&frame).await.unwrap();
        id
    }

    /// The body of the next answer, which must be the one to request `id`.
    pub(crate) async fn receive<R: RequestResponsePair>(&mut self, version: i16, id: i32) -> R::Response {
        let length = self.stream.read_i32().await.unwrap();
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut frame).await.unwrap();
        assert_eq!(frame[..4], id.to_be_bytes());
        let version = ApiVersion::new(version);
        let flexible = R::API_KEY.value() != 18 && <R::Response as KafkaMessage>::is_flexible(version);
        let body = Bytes::from(frame).slice(if flexible { 5 } else { 4 }..);
        R::Response::decode_from_bytes(body, version, DecodeLimits::default()).unwrap()
    }

    /// Sends a request and waits for its answer.
    pub(crate) async fn call<R>(&mut self, version: i16, request: &R) -> R::Response
    where
        R: RequestResponsePair + KafkaEncode,
    {
        let id = self.send(version, request).await;
        self.receive::<R>(version, id).await
    }
}
