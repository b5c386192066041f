//! A member of a classic group.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::records::MemberValue;

/// Names a request that waits for its answer. The owner of the group maps it to a connection.
pub(crate) type ReplyId = u64;

/// One protocol (assignment strategy) that a member offers, in its order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Protocol {
    pub(crate) name: String,
    pub(crate) metadata: Bytes,
}

/// A member of a classic group, from its first accepted JoinGroup on.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) instance_id: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) rebalance_timeout_ms: i32,
    pub(crate) session_timeout_ms: i32,
    pub(crate) protocols: Vec<Protocol>,
    pub(crate) assignment: Bytes,
    /// Until its first JoinGroup is answered a member cannot send heartbeats.
    pub(crate) is_new: bool,
    /// Monotonic time at which the session ends; `None` while a parked request keeps it alive.
    pub(crate) deadline_ms: Option<i64>,
    pub(crate) awaiting_join: Option<ReplyId>,
    pub(crate) awaiting_sync: Option<ReplyId>,
}

impl Member {
    /// Metadata under a protocol; empty when the member does not offer it.
    pub(crate) fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols
            .iter()
            .find(|p| p.name == protocol)
            .map(|p| p.metadata.clone())
            .unwrap_or_default()
    }

    pub(crate) fn supports(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|p| p.name == protocol)
    }

    /// The most preferred protocol among the candidates.
    pub(crate) fn vote<'a>(&self, candidates: &BTreeSet<&'a str>) -> Option<&'a str> {
        self.protocols
            .iter()
            .find_map(|p| candidates.get(p.name.as_str()).copied())
    }

    /// Known members that wait for the coordinator do not have to send heartbeats meanwhile.
    pub(crate) fn satisfies_heartbeat(&self) -> bool {
        !self.is_new && (self.awaiting_join.is_some() || self.awaiting_sync.is_some())
    }

    /// The stored form, with the metadata of the selected protocol only.
    pub(crate) fn to_value(&self, protocol: &str, assignment: Bytes) -> MemberValue {
        MemberValue {
            member_id: self.id.clone(),
            group_instance_id: self.instance_id.clone(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            rebalance_timeout_ms: self.rebalance_timeout_ms,
            session_timeout_ms: self.session_timeout_ms,
            subscription: self.metadata(protocol),
            assignment,
        }
    }

    /// A member read back from the log. Its session starts when the group is loaded.
    pub(crate) fn from_value(value: MemberValue, protocol: Option<&str>) -> Member {
        let protocols = protocol
            .map(|name| Protocol {
                name: name.to_owned(),
                metadata: value.subscription,
            })
            .into_iter()
            .collect();
        Member {
            id: value.member_id,
            instance_id: value.group_instance_id,
            client_id: value.client_id,
            client_host: value.client_host,
            rebalance_timeout_ms: value.rebalance_timeout_ms,
            session_timeout_ms: value.session_timeout_ms,
            protocols,
            assignment: value.assignment,
            is_new: false,
            deadline_ms: None,
            awaiting_join: None,
            awaiting_sync: None,
        }
    }
}
