//! Settings: every key with type, default, range and meaning; where values come from; what holds for a topic.
//!
//! Two tables say all there is to say about keys: `broker_keys` and `topic_keys`. From them come the checks, the
//! answers to DescribeConfigs, `alluvium config` and `docs/configuration.md`. The way of a value:
//!
//! `flag | environment | file` -> `layers` (precedence, one error line) -> [`Settings`] (checked against each other,
//! immutable) -> [`Config`] (with the dynamic configs of the manifest on top) -> [`TopicSettings`] of one topic.

mod broker_keys;
mod dynamic;
mod foreign;
mod key;
mod layers;
mod listener;
mod properties;
mod settings;
mod store_url;
#[cfg(test)]
mod tests;
mod topic_keys;

pub use dynamic::{Config, DescribedConfig, TopicSettings};
pub use layers::{ConfigError, Place, Surroundings, Warning};
pub use listener::Listener;
pub use settings::{LogFormat, Settings};

pub(crate) use broker_keys::{BrokerKey, SECTIONS};
pub(crate) use key::{Preset, Unit, nearest, quote};
pub(crate) use layers::{FlagSetting, variable_name};
pub(crate) use settings::{default_text, listing};
pub(crate) use store_url::{kind as store_kind, resolve as resolve_store_url};
pub(crate) use topic_keys::{TOPIC_KEYS, TopicKey};
