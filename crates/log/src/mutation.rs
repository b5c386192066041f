//! Rules of the protocol that can be broken on purpose, one at a time, to see that a harness notices.
//!
//! Only with the feature `mutations`, which nothing but the simulation turns on; without it [`on`] is `false` for the
//! compiler and leaves no trace.

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Mutation {
    /// A conditional write of unknown outcome is sent again, and a refusal then taken for its own success.
    CasRetriedBlindly = 1,
    /// The taker of a stream cleans up behind itself: the seal is deleted.
    SealDeleted,
    /// The head is not read again after a seal.
    FloorIgnored,
    /// A body of a compare-and-swap may repeat.
    EtagAba,
    /// Readers see a segment when its write begins.
    HighWatermarkFirst,
    /// The retry of a batch is answered before the original is published.
    DuplicateAnsweredEarly,
    /// A slot's way into a dead stream is forgotten while data of it still lies there.
    LinkDroppedEarly,
    /// A slot is given away without its release being in the stream.
    ReleaseSkipped,
    /// Objects are deleted because they are old.
    CleanerByAge,
    /// Ownership is not confirmed before an answer that clients act on for good.
    StaleCoordinator,
    /// Segments are published as their writes end, not in order.
    PublishedOutOfOrder,
    /// Pointers to a file of history are published while it is still being uploaded.
    PointerBeforeUpload,
    /// A log start counts that a broker wrote behind the seal of its stream.
    ZombieMovesLogStart,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 13] = [
        Mutation::CasRetriedBlindly,
        Mutation::SealDeleted,
        Mutation::FloorIgnored,
        Mutation::EtagAba,
        Mutation::HighWatermarkFirst,
        Mutation::DuplicateAnsweredEarly,
        Mutation::LinkDroppedEarly,
        Mutation::ReleaseSkipped,
        Mutation::CleanerByAge,
        Mutation::StaleCoordinator,
        Mutation::PublishedOutOfOrder,
        Mutation::PointerBeforeUpload,
        Mutation::ZombieMovesLogStart,
    ];
}

#[cfg(feature = "mutations")]
static BROKEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Breaks a rule for the rest of this process.
#[cfg(feature = "mutations")]
pub fn switch_on(mutation: Mutation) {
    BROKEN.store(mutation as u8, std::sync::atomic::Ordering::Relaxed);
}

/// Whether the rule is broken.
#[cfg(feature = "mutations")]
pub(crate) fn on(mutation: Mutation) -> bool {
    BROKEN.load(std::sync::atomic::Ordering::Relaxed) == mutation as u8
}

/// Whether the rule is broken: never.
#[cfg(not(feature = "mutations"))]
pub(crate) const fn on(_: Mutation) -> bool {
    false
}
