//! The Kafka protocol edge of Alluvium: connections, requests, groups, settings, metrics, and the `alluvium`
//! command.
//!
//! The way of a request: `server` accepts a connection, `frame` cuts it into requests under a memory budget,
//! `connection` keeps their order, `dispatch` finds the handler in its table, `handlers` talk to the engine
//! (`alluvium_log`), `protocol` decodes and encodes. Errors of the engine become Kafka's in `errors`.
#![allow(missing_docs)]

mod admin_change;
mod admin_log;
#[doc(hidden)]
pub mod benches;
pub mod broker;
mod budget;
pub mod cli;
mod cluster;
mod compaction;
pub mod config;
mod config_change;
mod connection;
mod dispatch;
pub mod errors;
mod fetch_session;
mod frame;
pub mod groups;
pub mod handlers;
mod history;
mod http;
mod log_pace;
mod metrics;
mod open_files;
mod peers;
mod process_metrics;
mod protocol;
mod retention;
mod server;
#[doc(hidden)]
pub mod simulated;
#[cfg(test)]
mod testing;
mod topics;
