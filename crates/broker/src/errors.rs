//! Kafka error codes, and the one place that maps the engine's errors to them.

use alluvium_log::manifest::Rejection;
use alluvium_log::{AppendError, BatchError, ReadError};

macro_rules! codes {
    ($($name:ident = $code:literal),* $(,)?) => {
        /// An error code of the Kafka protocol, under the name that Kafka gives it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i16)]
        pub enum ErrorCode {
            $(
                #[doc = concat!("Code ", stringify!($code), ".")]
                $name = $code
            ),*
        }

        impl ErrorCode {
            /// Name of a wire code as metrics and logs show it; `None` for a code that this broker never sends.
            pub(crate) fn name_of(code: i16) -> Option<&'static str> {
                match code {
                    $($code => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}
codes! {
    UnknownServerError = -1, None = 0, OffsetOutOfRange = 1, CorruptMessage = 2, UnknownTopicOrPartition = 3,
    InvalidFetchSize = 4, LeaderNotAvailable = 5, NotLeaderOrFollower = 6, RequestTimedOut = 7,
    BrokerNotAvailable = 8, ReplicaNotAvailable = 9, MessageTooLarge = 10, StaleControllerEpoch = 11,
    OffsetMetadataTooLarge = 12, NetworkException = 13, CoordinatorLoadInProgress = 14,
    CoordinatorNotAvailable = 15, NotCoordinator = 16, InvalidTopicException = 17, RecordListTooLarge = 18,
    NotEnoughReplicas = 19, NotEnoughReplicasAfterAppend = 20, InvalidRequiredAcks = 21, IllegalGeneration = 22,
    InconsistentGroupProtocol = 23, InvalidGroupId = 24, UnknownMemberId = 25, InvalidSessionTimeout = 26,
    RebalanceInProgress = 27, InvalidCommitOffsetSize = 28, TopicAuthorizationFailed = 29,
    GroupAuthorizationFailed = 30, ClusterAuthorizationFailed = 31, InvalidTimestamp = 32,
    UnsupportedSaslMechanism = 33, IllegalSaslState = 34, UnsupportedVersion = 35, TopicAlreadyExists = 36,
    InvalidPartitions = 37, InvalidReplicationFactor = 38, InvalidReplicaAssignment = 39, InvalidConfig = 40,
    NotController = 41, InvalidRequest = 42, UnsupportedForMessageFormat = 43, PolicyViolation = 44,
    OutOfOrderSequenceNumber = 45, DuplicateSequenceNumber = 46, InvalidProducerEpoch = 47,
    InvalidTxnState = 48, InvalidProducerIdMapping = 49, InvalidTransactionTimeout = 50,
    ConcurrentTransactions = 51, TransactionCoordinatorFenced = 52, TransactionalIdAuthorizationFailed = 53,
    SecurityDisabled = 54, OperationNotAttempted = 55, KafkaStorageError = 56, LogDirNotFound = 57,
    SaslAuthenticationFailed = 58, UnknownProducerId = 59, ReassignmentInProgress = 60, NonEmptyGroup = 68,
    GroupIdNotFound = 69, FetchSessionIdNotFound = 70, InvalidFetchSessionEpoch = 71, ListenerNotFound = 72,
    TopicDeletionDisabled = 73, FencedLeaderEpoch = 74, UnknownLeaderEpoch = 75, UnsupportedCompressionType = 76,
    StaleBrokerEpoch = 77, OffsetNotAvailable = 78, MemberIdRequired = 79, PreferredLeaderNotAvailable = 80,
    GroupMaxSizeReached = 81, FencedInstanceId = 82, EligibleLeadersNotAvailable = 83, ElectionNotNeeded = 84,
    NoReassignmentInProgress = 85, GroupSubscribedToTopic = 86, InvalidRecord = 87, UnstableOffsetCommit = 88,
    ThrottlingQuotaExceeded = 89, ProducerFenced = 90, ResourceNotFound = 91, DuplicateResource = 92,
    UnacceptableCredential = 93, UnknownTopicId = 100, InconsistentTopicId = 103,
    InconsistentClusterId = 104, FetchSessionTopicIdError = 106, UnknownControllerId = 116, InvalidRegularExpression = 128,
}
impl ErrorCode {
    /// The number on the wire.
    pub fn code(self) -> i16 {
        self as i16
    }
}

impl From<ErrorCode> for i16 {
    fn from(error: ErrorCode) -> i16 {
        error as i16
    }
}

impl From<&AppendError> for ErrorCode {
    fn from(error: &AppendError) -> ErrorCode {
        match error {
            AppendError::NotLeader | AppendError::Stopping => ErrorCode::NotLeaderOrFollower,
            AppendError::UnknownPartition => ErrorCode::UnknownTopicOrPartition,
            AppendError::OutOfOrderSequence { .. } => ErrorCode::OutOfOrderSequenceNumber,
            AppendError::DuplicateSequence => ErrorCode::DuplicateSequenceNumber,
            // PRODUCER_FENCED is what the transactional requests say; Produce says this one at every version.
            AppendError::InvalidProducerEpoch { .. } => ErrorCode::InvalidProducerEpoch,
        }
    }
}

impl From<&ReadError> for ErrorCode {
    fn from(error: &ReadError) -> ErrorCode {
        match error {
            ReadError::NotLeader => ErrorCode::NotLeaderOrFollower,
            ReadError::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
            // Retriable for every client, unlike UNKNOWN_SERVER_ERROR.
            ReadError::Store(_) | ReadError::NoHistory(_) => ErrorCode::KafkaStorageError,
            ReadError::Corrupt(_) | ReadError::Missing(_) => ErrorCode::CorruptMessage,
        }
    }
}

impl From<&BatchError> for ErrorCode {
    fn from(error: &BatchError) -> ErrorCode {
        match error {
            BatchError::BatchLength(_) | BatchError::Crc => ErrorCode::CorruptMessage,
            BatchError::Truncated | BatchError::Invalid(_) | BatchError::UnsupportedMagic(0 | 1) => {
                ErrorCode::InvalidRecord
            }
            BatchError::UnsupportedMagic(_) => ErrorCode::CorruptMessage,
            BatchError::UnsupportedCodec(_) => ErrorCode::UnsupportedCompressionType,
            BatchError::Timestamp(_) => ErrorCode::InvalidTimestamp,
            BatchError::TooLarge => ErrorCode::MessageTooLarge,
        }
    }
}

impl From<&Rejection> for ErrorCode {
    fn from(rejection: &Rejection) -> ErrorCode {
        match rejection {
            Rejection::TopicExists(_) => ErrorCode::TopicAlreadyExists,
            Rejection::UnknownTopic => ErrorCode::UnknownTopicOrPartition,
            Rejection::InvalidPartitions(_) => ErrorCode::InvalidPartitions,
            // The outcome is not known here, or will be another one soon; Kafka's clients try again after this one.
            Rejection::Unavailable(_) | Rejection::DeletionUnderWay(_) => ErrorCode::RequestTimedOut,
        }
    }
}

/// KIP-320: compares the leader epoch that a client believes in, if it says one, with ours.
pub(crate) fn check_leader_epoch(claimed: i32, current: i32) -> Result<(), ErrorCode> {
    if claimed < 0 || claimed == current {
        Ok(())
    } else if claimed < current {
        Err(ErrorCode::FencedLeaderEpoch)
    } else {
        Err(ErrorCode::UnknownLeaderEpoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leader_epochs_are_compared_only_when_given() {
        assert_eq!(check_leader_epoch(-1, 4), Ok(()));
        assert_eq!(check_leader_epoch(4, 4), Ok(()));
        assert_eq!(check_leader_epoch(3, 4), Err(ErrorCode::FencedLeaderEpoch));
        assert_eq!(check_leader_epoch(5, 4), Err(ErrorCode::UnknownLeaderEpoch));
    }

    #[test]
    fn batch_errors_are_those_of_kafka() {
        for (error, code) in [
            (BatchError::Crc, 2),
            (BatchError::BatchLength(3), 2),
            (BatchError::Truncated, 87),
            (BatchError::UnsupportedMagic(1), 87),
            (BatchError::UnsupportedMagic(3), 2),
            (BatchError::Invalid("x"), 87),
            (BatchError::UnsupportedCodec(6), 76),
            (BatchError::Timestamp("x"), 32),
            (BatchError::TooLarge, 10),
        ] {
            assert_eq!(ErrorCode::from(&error).code(), code, "{error}");
        }
    }

    #[test]
    fn append_errors_are_those_of_kafka() {
        for (error, code) in [
            (AppendError::NotLeader, 6),
            (AppendError::Stopping, 6),
            (AppendError::UnknownPartition, 3),
            (AppendError::OutOfOrderSequence { expected: 1, got: 3 }, 45),
            (AppendError::DuplicateSequence, 46),
            (AppendError::InvalidProducerEpoch { current: 2, got: 1 }, 47),
        ] {
            assert_eq!(ErrorCode::from(&error).code(), code, "{error}");
        }
    }
}
