//! Takes the place of two functions of the C library, so that whatever asks the operating system for randomness or
//! time gets what the seed says: identifiers, hash seeds, the choices of `select!`.
//!
//! The standard library and the `getrandom` crate look both symbols up so that a program may define them itself. This
//! is the only unsafe code of the simulation; it is on only in a process that runs one seed.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static ACTIVE: AtomicBool = AtomicBool::new(false);
static RANDOM: AtomicU64 = AtomicU64::new(0);
static NANOS: AtomicU64 = AtomicU64::new(0);

/// From now on this process has no randomness and no time of its own.
pub fn take_over(seed: u64) {
    RANDOM.store(seed ^ 0x5851_f42d_4c95_7f2d, Ordering::Relaxed);
    ACTIVE.store(true, Ordering::Relaxed);
}

/// Sets what clocks of the process show.
pub fn set_millis(millis: u64) {
    NANOS.store(millis * 1_000_000, Ordering::Relaxed);
}

fn next_random() -> u64 {
    let mut z = RANDOM
        .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// # Safety
/// As `getrandom(2)`: `buf` points to `len` bytes that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(
    buf: *mut libc::c_void,
    len: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    if !ACTIVE.load(Ordering::Relaxed) {
        // SAFETY: the arguments are the caller's.
        return unsafe { libc::syscall(libc::SYS_getrandom, buf, len, flags) as libc::ssize_t };
    }
    if len > 0 {
        // SAFETY: the caller promises `len` writable bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buf.cast::<u8>(), len) };
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&next_random().to_le_bytes()[..chunk.len()]);
        }
    }
    len as libc::ssize_t
}

/// # Safety
/// As `clock_gettime(2)`: `time` points to a `timespec` that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    if !ACTIVE.load(Ordering::Relaxed) {
        // SAFETY: the arguments are the caller's.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int };
    }
    let nanos = NANOS.load(Ordering::Relaxed);
    let seconds = crate::world::EPOCH_MS as u64 / 1000 + nanos / 1_000_000_000;
    // SAFETY: the caller promises a `timespec` that may be written.
    unsafe {
        (*time).tv_sec = seconds as libc::time_t;
        (*time).tv_nsec = (nanos % 1_000_000_000) as libc::c_long;
    }
    0
}
