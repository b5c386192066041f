//! What can be switched off around the engine's functions. Without a deviation the model does what the engine does.

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deviation {
    /// "It exists" after an attempt of one's own is taken for success, without reading back.
    BlindRetryExistsIsOurs,
    /// A write that timed out is told as failed, and its bytes go out again under the next seq.
    UnknownIsFailure,
    /// A segment is shown and acknowledged when it is sent.
    PublishBeforeDurable,
    /// A segment is shown and acknowledged when it is durable, whatever became of those before it.
    PublishOutOfOrder,
    /// A checkpoint holds what got its offset, published or not.
    CheckpointAssigned,
    /// A duplicate of a batch that is being written is answered at once.
    AnswerDuplicateEarly,
    /// A taker does not look at the floor.
    IgnoreFloor,
    /// A taker looks at the floor only before it seals.
    FloorReadOnlyBeforeSeal,
    /// A seal that was found is believed without reading the head again.
    TrustFoundSeal,
    /// A taker ends the stream at the first missing seq without a seal.
    TakeWithoutSeal,
    /// A segment that is met when sealing is passed over and not read.
    SegmentMetBySealNotRead,
    /// Segments are deleted before the head that says so is durable.
    DeleteBeforeHeadDurable,
    /// The floor follows the checkpoint and forgets what is still stored below it.
    FloorForgetsNeeded,
    /// A restarted broker appends without the producers that recovery found.
    ForgetProducers,
    /// A head names a checkpoint whose write was not answered.
    UnknownCheckpointIsStored,
    /// A head is written whatever is there.
    HeadWithoutCas,
    /// An old checkpoint is deleted when the head that names a newer one is sent.
    DeleteCheckpointBeforeHead,
    /// A head that was given up is taken for written.
    UnknownHeadIsStored,
    /// A head that was given up is taken for one that never comes.
    UnknownHeadIsLost,
    /// A taker that finds no checkpoint where the head says takes the stream for one without.
    MissingCheckpointIsNone,
}

use Deviation::*;

/// Every deviation, with the configuration that shows it.
pub const MUTATIONS: &[(Deviation, &str)] = &[
    (BlindRetryExistsIsOurs, "write"),
    (UnknownIsFailure, "write"),
    (PublishBeforeDurable, "write"),
    (PublishOutOfOrder, "write"),
    (AnswerDuplicateEarly, "write"),
    (TakeWithoutSeal, "write"),
    (SegmentMetBySealNotRead, "write"),
    (ForgetProducers, "write"),
    (CheckpointAssigned, "checkpoint"),
    (FloorForgetsNeeded, "checkpoint"),
    (IgnoreFloor, "floor"),
    (FloorReadOnlyBeforeSeal, "floor"),
    (TrustFoundSeal, "two-takers"),
    (DeleteBeforeHeadDurable, "floor"),
    (UnknownCheckpointIsStored, "heads"),
    (HeadWithoutCas, "heads"),
    (DeleteCheckpointBeforeHead, "heads"),
    (UnknownHeadIsStored, "heads"),
    (UnknownHeadIsLost, "heads"),
    (MissingCheckpointIsNone, "old-checkpoints"),
];
