//! Stands in for the crate of this name while a cluster is simulated.
//!
//! `hashbrown` seeds its maps from addresses, which the kernel draws anew for each process. A map that is walked then
//! has another order in each run, and a seed would not replay. Here every map has the same seed.

/// What `hashbrown` uses.
pub mod fast {
    use std::hash::{BuildHasher, Hasher};

    /// Builds hashers that all begin alike.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct RandomState;

    /// The same, under the name of a state that is meant to be fixed.
    pub type FixedState = RandomState;

    impl BuildHasher for RandomState {
        type Hasher = FoldHasher<'static>;

        fn build_hasher(&self) -> FoldHasher<'static> {
            FoldHasher(0x9e37_79b9_7f4a_7c15, std::marker::PhantomData)
        }
    }

    /// Multiplies and folds, eight bytes at a time.
    #[derive(Clone, Copy, Debug)]
    pub struct FoldHasher<'a>(u64, std::marker::PhantomData<&'a ()>);

    impl Hasher for FoldHasher<'_> {
        fn write(&mut self, bytes: &[u8]) {
            for chunk in bytes.chunks(8) {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                self.write_u64(u64::from_le_bytes(word));
            }
            self.write_u64(bytes.len() as u64);
        }

        fn write_u64(&mut self, word: u64) {
            let product = u128::from(self.0 ^ word) * u128::from(0xa076_1d64_78bd_642f_u64);
            self.0 = (product as u64) ^ ((product >> 64) as u64) ^ word.rotate_left(29);
        }

        fn finish(&self) -> u64 {
            let x = self.0 ^ (self.0 >> 32);
            x.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ (x >> 29)
        }
    }
}
