//! The records of `__consumer_offsets`, byte for byte as Kafka writes them, so that Kafka's own tools and
//! consumers of that topic understand ours.
//!
//! Schemas: `OffsetCommitKey` (versions 0-1), `OffsetCommitValue` (0-4), `GroupMetadataKey` (2) and
//! `GroupMetadataValue` (0-4) of Kafka 4. Written are what Kafka 4.1 and later write: offset values as
//! version 4 with the topic id in tag 0 (3 when the id is unknown, 1 when a client set an own retention
//! time), group values as version 3. All published versions are read.

use bytes::Bytes;

use alluvium_log::TopicId;

/// The topic that holds groups and offsets.
pub(crate) const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// The partition of `__consumer_offsets` that coordinates a group: Java's `String.hashCode`, made
/// non-negative the way Kafka's `Utils.abs` does it (`Integer.MIN_VALUE` becomes 0), modulo the count.
pub(crate) fn partition_for(group_id: &str, partitions: u32) -> i32 {
    let mut hash: i32 = 0;
    for unit in group_id.encode_utf16() {
        hash = hash.wrapping_mul(31).wrapping_add(i32::from(unit));
    }
    let positive = hash.checked_abs().unwrap_or(0);
    let count = i32::try_from(partitions.max(1)).unwrap_or(i32::MAX);
    positive % count
}

/// A committed offset as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OffsetValue {
    pub(crate) offset: i64,
    /// -1 when the client gave none.
    pub(crate) leader_epoch: i32,
    pub(crate) metadata: String,
    pub(crate) commit_timestamp_ms: i64,
    /// Only for commits that carried an own retention time (OffsetCommit versions 2-4).
    pub(crate) expire_timestamp_ms: Option<i64>,
    /// `None` in records written before Kafka 4.1 or with an expiry time.
    pub(crate) topic_id: Option<TopicId>,
}

/// A member of a stored generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberValue {
    pub(crate) member_id: String,
    pub(crate) group_instance_id: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) rebalance_timeout_ms: i32,
    pub(crate) session_timeout_ms: i32,
    /// Metadata under the selected protocol.
    pub(crate) subscription: Bytes,
    pub(crate) assignment: Bytes,
}

/// A generation of a classic group as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupValue {
    /// Empty for a group that never had members.
    pub(crate) protocol_type: String,
    pub(crate) generation: i32,
    pub(crate) protocol: Option<String>,
    pub(crate) leader: Option<String>,
    /// Wall-clock time of the last state change; -1 when unknown.
    pub(crate) state_timestamp_ms: i64,
    pub(crate) members: Vec<MemberValue>,
}

/// One record of the topic; a `None` value is a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogRecord {
    /// The committed offset of one partition in one group.
    Offset {
        group: String,
        topic: String,
        partition: i32,
        value: Option<OffsetValue>,
    },
    /// The last stored generation of a group.
    Group {
        group: String,
        value: Option<GroupValue>,
    },
}

/// Key and value bytes, ready for a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EncodedRecord {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

impl EncodedRecord {
    /// Bytes of key and value.
    pub(crate) fn len(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// Why a record cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("a field of {0} bytes does not fit its length prefix")]
    TooLong(usize),
    #[error("the record is cut short")]
    Truncated,
    #[error("a length or a string in the record is invalid")]
    Invalid,
    #[error("value version {0} is not known")]
    UnknownVersion(i16),
}

const OFFSET_KEY_VERSION: i16 = 1;
const GROUP_KEY_VERSION: i16 = 2;
const GROUP_VALUE_VERSION: i16 = 3;
const TOPIC_ID_TAG: u32 = 0;

impl LogRecord {
    /// The group that the record belongs to.
    pub(crate) fn group(&self) -> &str {
        match self {
            LogRecord::Offset { group, .. } | LogRecord::Group { group, .. } => group,
        }
    }

    /// Bytes as Kafka writes them.
    pub(crate) fn encode(&self) -> Result<EncodedRecord, RecordError> {
        let mut key = Writer::default();
        let value = match self {
            LogRecord::Offset {
                group,
                topic,
                partition,
                value,
            } => {
                key.i16(OFFSET_KEY_VERSION);
                key.string(group)?;
                key.string(topic)?;
                key.i32(*partition);
                value.as_ref().map(encode_offset).transpose()?
            }
            LogRecord::Group { group, value } => {
                key.i16(GROUP_KEY_VERSION);
                key.string(group)?;
                value.as_ref().map(encode_group).transpose()?
            }
        };
        Ok(EncodedRecord { key: key.0, value })
    }

    /// `Ok(None)` is a record of a kind that classic groups do not use (for instance of KIP-848 groups).
    pub(crate) fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Option<LogRecord>, RecordError> {
        let mut reader = Reader(key);
        match reader.i16()? {
            0 | OFFSET_KEY_VERSION => {
                let group = reader.string()?;
                let topic = reader.string()?;
                let partition = reader.i32()?;
                let value = value.map(decode_offset).transpose()?;
                Ok(Some(LogRecord::Offset {
                    group,
                    topic,
                    partition,
                    value,
                }))
            }
            GROUP_KEY_VERSION => {
                let group = reader.string()?;
                let value = value.map(decode_group).transpose()?;
                Ok(Some(LogRecord::Group { group, value }))
            }
            _ => Ok(None),
        }
    }
}

fn encode_offset(value: &OffsetValue) -> Result<Vec<u8>, RecordError> {
    let mut out = Writer::default();
    match (value.expire_timestamp_ms, value.topic_id) {
        (Some(expire_ms), _) => {
            out.i16(1);
            out.i64(value.offset);
            out.string(&value.metadata)?;
            out.i64(value.commit_timestamp_ms);
            out.i64(expire_ms);
        }
        (None, None) => {
            out.i16(3);
            out.i64(value.offset);
            out.i32(value.leader_epoch);
            out.string(&value.metadata)?;
            out.i64(value.commit_timestamp_ms);
        }
        (None, Some(topic_id)) => {
            out.i16(4);
            out.i64(value.offset);
            out.i32(value.leader_epoch);
            out.compact_string(&value.metadata)?;
            out.i64(value.commit_timestamp_ms);
            out.varint(1);
            out.varint(TOPIC_ID_TAG);
            out.varint(16);
            out.0.extend_from_slice(topic_id.as_bytes());
        }
    }
    Ok(out.0)
}

fn decode_offset(bytes: &[u8]) -> Result<OffsetValue, RecordError> {
    let mut reader = Reader(bytes);
    let version = reader.i16()?;
    if !(0..=4).contains(&version) {
        return Err(RecordError::UnknownVersion(version));
    }
    let offset = reader.i64()?;
    let leader_epoch = if version >= 3 { reader.i32()? } else { -1 };
    let metadata = if version >= 4 {
        reader.compact_string()?
    } else {
        reader.string()?
    };
    let commit_timestamp_ms = reader.i64()?;
    let expire = if version == 1 { reader.i64()? } else { -1 };
    let mut topic_id = None;
    if version >= 4 {
        reader.tags(|tag, data| {
            if tag == TOPIC_ID_TAG {
                let id = TopicId::from_slice(data).map_err(|_| RecordError::Invalid)?;
                topic_id = (!id.is_nil()).then_some(id);
            }
            Ok(())
        })?;
    }
    let expire_timestamp_ms = (expire != -1).then_some(expire);
    Ok(OffsetValue {
        offset,
        leader_epoch,
        metadata,
        commit_timestamp_ms,
        expire_timestamp_ms,
        topic_id,
    })
}

fn encode_group(value: &GroupValue) -> Result<Vec<u8>, RecordError> {
    let mut out = Writer::default();
    out.i16(GROUP_VALUE_VERSION);
    out.string(&value.protocol_type)?;
    out.i32(value.generation);
    out.nullable_string(value.protocol.as_deref())?;
    out.nullable_string(value.leader.as_deref())?;
    out.i64(value.state_timestamp_ms);
    out.length(value.members.len())?;
    for member in &value.members {
        out.string(&member.member_id)?;
        out.nullable_string(member.group_instance_id.as_deref())?;
        out.string(&member.client_id)?;
        out.string(&member.client_host)?;
        out.i32(member.rebalance_timeout_ms);
        out.i32(member.session_timeout_ms);
        out.bytes(&member.subscription)?;
        out.bytes(&member.assignment)?;
    }
    Ok(out.0)
}

fn decode_group(bytes: &[u8]) -> Result<GroupValue, RecordError> {
    let mut reader = Reader(bytes);
    let version = reader.i16()?;
    if !(0..=4).contains(&version) {
        return Err(RecordError::UnknownVersion(version));
    }
    let flexible = version >= 4;
    let protocol_type = reader.text(flexible)?;
    let generation = reader.i32()?;
    let protocol = reader.nullable_text(flexible)?;
    let leader = reader.nullable_text(flexible)?;
    let state_timestamp_ms = if version >= 2 { reader.i64()? } else { -1 };
    let count = reader.array_length(flexible)?;
    let mut members = Vec::new();
    for _ in 0..count {
        let member_id = reader.text(flexible)?;
        let group_instance_id = if version >= 3 {
            reader.nullable_text(flexible)?
        } else {
            None
        };
        let client_id = reader.text(flexible)?;
        let client_host = reader.text(flexible)?;
        let rebalance = if version >= 1 { reader.i32()? } else { -1 };
        let session_timeout_ms = reader.i32()?;
        let subscription = reader.byte_field(flexible)?;
        let assignment = reader.byte_field(flexible)?;
        if flexible {
            reader.tags(|_, _| Ok(()))?;
        }
        members.push(MemberValue {
            member_id,
            group_instance_id,
            client_id,
            client_host,
            // Version 0 knew one timeout for both.
            rebalance_timeout_ms: if rebalance == -1 {
                session_timeout_ms
            } else {
                rebalance
            },
            session_timeout_ms,
            subscription,
            assignment,
        });
    }
    if flexible {
        reader.tags(|_, _| Ok(()))?;
    }
    Ok(GroupValue {
        protocol_type,
        generation,
        protocol,
        leader,
        state_timestamp_ms,
        members,
    })
}

/// The topics of a `ConsumerProtocolSubscription`. Only its version 0 prefix is read, which every version
/// shares. `None` when the bytes are not such a subscription.
pub(crate) fn subscribed_topics(metadata: &[u8]) -> Option<Vec<String>> {
    let mut reader = Reader(metadata);
    let version = reader.i16().ok()?;
    if version < 0 {
        return None;
    }
    let count = reader.array_length(false).ok()?;
    let mut topics = Vec::new();
    for _ in 0..count {
        topics.push(reader.string().ok()?);
    }
    Some(topics)
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn i16(&mut self, value: i16) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn i32(&mut self, value: i32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn length(&mut self, length: usize) -> Result<(), RecordError> {
        self.i32(i32::try_from(length).map_err(|_| RecordError::TooLong(length))?);
        Ok(())
    }

    fn string(&mut self, value: &str) -> Result<(), RecordError> {
        self.i16(i16::try_from(value.len()).map_err(|_| RecordError::TooLong(value.len()))?);
        self.0.extend_from_slice(value.as_bytes());
        Ok(())
    }

    fn nullable_string(&mut self, value: Option<&str>) -> Result<(), RecordError> {
        match value {
            Some(value) => self.string(value),
            None => {
                self.i16(-1);
                Ok(())
            }
        }
    }

    /// A compact length is stored plus one.
    fn compact_string(&mut self, value: &str) -> Result<(), RecordError> {
        let length = i16::try_from(value.len()).map_err(|_| RecordError::TooLong(value.len()))?;
        self.varint(u32::from(length.unsigned_abs()) + 1);
        self.0.extend_from_slice(value.as_bytes());
        Ok(())
    }

    fn bytes(&mut self, value: &[u8]) -> Result<(), RecordError> {
        self.length(value.len())?;
        self.0.extend_from_slice(value);
        Ok(())
    }
}

/// Reads from a slice; every length is checked against what is left, so that nothing is allocated by a
/// length that the bytes do not back.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], RecordError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(RecordError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        self.take(N)?.try_into().map_err(|_| RecordError::Truncated)
    }

    fn i16(&mut self) -> Result<i16, RecordError> {
        self.array().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32, RecordError> {
        self.array().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, RecordError> {
        self.array().map(i64::from_be_bytes)
    }

    fn varint(&mut self) -> Result<u32, RecordError> {
        let mut value: u32 = 0;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(RecordError::Invalid)
    }

    /// A compact length is stored plus one; 0 is null.
    fn compact_length(&mut self) -> Result<Option<usize>, RecordError> {
        Ok(self.varint()?.checked_sub(1).map(|length| length as usize))
    }

    fn utf8(&mut self, length: usize) -> Result<String, RecordError> {
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| RecordError::Invalid)
    }

    fn nullable_string(&mut self) -> Result<Option<String>, RecordError> {
        match self.i16()? {
            -1 => Ok(None),
            length => self
                .utf8(usize::try_from(length).map_err(|_| RecordError::Invalid)?)
                .map(Some),
        }
    }

    fn string(&mut self) -> Result<String, RecordError> {
        self.nullable_string()?.ok_or(RecordError::Invalid)
    }

    fn nullable_compact_string(&mut self) -> Result<Option<String>, RecordError> {
        match self.compact_length()? {
            None => Ok(None),
            Some(length) => self.utf8(length).map(Some),
        }
    }

    fn compact_string(&mut self) -> Result<String, RecordError> {
        self.nullable_compact_string()?.ok_or(RecordError::Invalid)
    }

    fn text(&mut self, flexible: bool) -> Result<String, RecordError> {
        if flexible {
            self.compact_string()
        } else {
            self.string()
        }
    }

    fn nullable_text(&mut self, flexible: bool) -> Result<Option<String>, RecordError> {
        if flexible {
            self.nullable_compact_string()
        } else {
            self.nullable_string()
        }
    }

    fn byte_field(&mut self, flexible: bool) -> Result<Bytes, RecordError> {
        let length = if flexible {
            self.compact_length()?.ok_or(RecordError::Invalid)?
        } else {
            usize::try_from(self.i32()?).map_err(|_| RecordError::Invalid)?
        };
        Ok(Bytes::copy_from_slice(self.take(length)?))
    }

    fn array_length(&mut self, flexible: bool) -> Result<usize, RecordError> {
        if flexible {
            self.compact_length()?.ok_or(RecordError::Invalid)
        } else {
            usize::try_from(self.i32()?).map_err(|_| RecordError::Invalid)
        }
    }

    fn tags(
        &mut self,
        mut each: impl FnMut(u32, &'a [u8]) -> Result<(), RecordError>,
    ) -> Result<(), RecordError> {
        for _ in 0..self.varint()? {
            let tag = self.varint()?;
            let size = self.varint()? as usize;
            each(tag, self.take(size)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
