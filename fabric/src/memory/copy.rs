//! Copies into and out of memory that a peer may be reading at the same time.
//!
//! Registered memory is exposed as a whole, while its blocks are handed out and written one by one. So in a fabric
//! within this process, a peer that reads memory that was not lent to it races with the writer. That peer may get
//! garbage; the process must not get undefined behaviour. Hence every access of this crate to memory that may be
//! written at the same time is a relaxed atomic: of 8 bytes where the address is aligned, of one byte at the ends.
//! (Where a race crosses such an end, accesses of different sizes overlap. Rust's memory model leaves that case open;
//! every machine that Thallus runs on defines it. Only a peer that breaks the protocol causes it.)

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

const WORD: usize = size_of::<u64>();

/// Copies `len` bytes of memory that other threads may be writing.
///
/// # Safety
/// `from .. from + len` and `to .. to + len` are valid for reads and writes, for the length of the call. Other code
/// that writes `from` or accesses `to` does so by atomic operations only. The ranges may overlap; each byte of the
/// result is then the old or the new one.
pub(super) unsafe fn between(from: NonNull<u8>, to: NonNull<u8>, len: usize) {
    let mut done = 0;
    while done < len {
        // SAFETY: `done < len`, so within both ranges.
        let (source, target) = unsafe { (from.add(done), to.add(done)) };
        let aligned = source.as_ptr().addr().is_multiple_of(WORD);
        if aligned && len - done >= WORD {
            // SAFETY: aligned, and all 8 bytes lie within the range, which the caller guarantees to be valid.
            let word = unsafe { AtomicU64::from_ptr(source.as_ptr().cast()) }.load(Ordering::Relaxed);
            // SAFETY: 8 bytes are left in the target too.
            unsafe { store_word(target, word) };
            done += WORD;
        } else {
            // SAFETY: one byte within either range.
            unsafe {
                let byte = AtomicU8::from_ptr(source.as_ptr()).load(Ordering::Relaxed);
                AtomicU8::from_ptr(target.as_ptr()).store(byte, Ordering::Relaxed);
            }
            done += 1;
        }
    }
}

/// Copies ordinary bytes into memory that other threads may be reading.
///
/// # Safety
/// `to .. to + bytes.len()` is valid for writes. Other code accesses it by atomic operations only, if at all.
pub(super) unsafe fn into(bytes: &[u8], to: NonNull<u8>) {
    let mut done = 0;
    // Byte by byte up to the target's first aligned word, and again for the rest at the end.
    let head = to.as_ptr().align_offset(WORD).min(bytes.len());
    let (head_bytes, rest) = bytes.split_at(head);
    let (words, tail_bytes) = rest.as_chunks::<WORD>();
    for &byte in head_bytes {
        // SAFETY: fewer bytes than `bytes.len()` are done.
        unsafe { AtomicU8::from_ptr(to.add(done).as_ptr()).store(byte, Ordering::Relaxed) };
        done += 1;
    }
    for word in words {
        // SAFETY: as above, and 8 bytes are left.
        unsafe { store_word(to.add(done), u64::from_ne_bytes(*word)) };
        done += WORD;
    }
    for &byte in tail_bytes {
        // SAFETY: as above.
        unsafe { AtomicU8::from_ptr(to.add(done).as_ptr()).store(byte, Ordering::Relaxed) };
        done += 1;
    }
}

/// # Safety
/// 8 bytes at `target` are valid for writes. Other code accesses them by atomic operations only.
unsafe fn store_word(target: NonNull<u8>, word: u64) {
    if target.as_ptr().addr().is_multiple_of(WORD) {
        // SAFETY: the caller guarantees that it is valid, and it is aligned.
        unsafe { AtomicU64::from_ptr(target.as_ptr().cast()) }.store(word, Ordering::Relaxed);
        return;
    }
    for (at, byte) in word.to_ne_bytes().into_iter().enumerate() {
        // SAFETY: within the 8 bytes.
        unsafe { AtomicU8::from_ptr(target.add(at).as_ptr()) }.store(byte, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alignment_and_length_copies_exactly() {
        let source: Vec<u8> = (0..200_u8).collect();
        for from in 0..9 {
            for to in 0..9 {
                for len in [0, 1, 7, 8, 9, 15, 16, 17, 64, 100] {
                    let mut bytes = source.clone();
                    let mut between_target = vec![0xEE_u8; 200];
                    let mut into_target = between_target.clone();
                    // SAFETY: vectors of 200 bytes, offsets below 9, lengths up to 100; no other thread accesses them.
                    // The source pointer is mutable because an atomic is made from it.
                    unsafe {
                        let target = NonNull::new_unchecked(between_target.as_mut_ptr().add(to));
                        between(NonNull::new_unchecked(bytes.as_mut_ptr().add(from)), target, len);
                        into(&source[from..from + len], NonNull::new_unchecked(into_target.as_mut_ptr().add(to)));
                    }
                    let mut expected = vec![0xEE_u8; 200];
                    expected[to..to + len].copy_from_slice(&source[from..from + len]);
                    assert_eq!(between_target, expected, "between: from {from} to {to} len {len}");
                    assert_eq!(into_target, expected, "into: from {from} to {to} len {len}");
                }
            }
        }
    }
}
