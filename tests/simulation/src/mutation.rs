//! Rules that can be broken on purpose, one at a time, to see that the simulation notices.

pub use alluvium_log::mutation::Mutation;
