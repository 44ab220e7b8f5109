//! Copies into and out of memory that a peer may be reading at the same time.
//!
//! Registered memory is lent as a whole, while its blocks are handed out and written one by one; so in a fabric that
//! lives in this process, a peer that reads memory that it was never lent races with the writer. That peer may get
//! garbage; the process must not get undefined behaviour. Hence every access that this crate makes to such memory while
//! it may be written is a relaxed atomic: of 8 bytes where the address is aligned, of one byte at the ends. (Where a
//! race crosses such an end, accesses of different sizes overlap. Rust's memory model leaves that case open; every
//! machine that this runs on defines it. Only a peer that breaks the protocol gets there.)

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

const WORD: usize = size_of::<u64>();

/// Copies `len` bytes of memory that others may be writing.
///
/// # Safety
/// `from .. from + len` and `to .. to + len` are valid for reads and writes, for the length of the call; others access
/// both by atomic operations only, if they write `from` or access `to` at all. The ranges may overlap (then the result
/// is either's bytes).
pub(super) unsafe fn between(from: NonNull<u8>, to: NonNull<u8>, len: usize) {
    let mut done = 0;
    while done < len {
        // SAFETY: `done < len`, so within both ranges.
        let (source, target) = unsafe { (from.add(done), to.add(done)) };
        let aligned = source.as_ptr().addr().is_multiple_of(WORD);
        if aligned && len - done >= WORD {
            // SAFETY: aligned, and all 8 bytes lie within the range, valid as the caller vouches.
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

/// Copies ordinary bytes into memory that others may be reading.
///
/// # Safety
/// `to .. to + bytes.len()` is valid for writes; others access it by atomic operations only, if at all.
pub(super) unsafe fn into(bytes: &[u8], to: NonNull<u8>) {
    let mut done = 0;
    // Up to the target's first aligned word, and the rest at the end, byte by byte.
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
/// 8 bytes at `target` are valid for writes, and accessed by others atomically only.
unsafe fn store_word(target: NonNull<u8>, word: u64) {
    if target.as_ptr().addr().is_multiple_of(WORD) {
        // SAFETY: valid as the caller vouches, and aligned.
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
                    // SAFETY: vectors of 200 bytes, offsets below 9, lengths up to 100; no other thread sees them. The
                    // source pointer is mutable because an atomic is made from it.
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
