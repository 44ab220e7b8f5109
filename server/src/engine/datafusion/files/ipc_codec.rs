//! The size of a compressed buffer of an Arrow file when it is decompressed, known before it is decompressed.
//!
//! `arrow_ipc` allocates what the buffer's first eight bytes declare, and then lets LZ4 write as much as it likes:
//! both are bounded here.

use arrow_ipc::CompressionType;

/// Length of the declared length, in front of the compressed bytes.
const PREFIX: usize = 8;
/// Declared instead of a length: the bytes that follow are not compressed.
const NOT_COMPRESSED: i64 = -1;
/// The most that a block of Zstandard yields. The smallest one, a repeated byte, takes four bytes.
const ZSTD_BLOCK: u64 = 128 << 10;
const ZSTD_SMALLEST_BLOCK: u64 = 4;
const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];

/// Length of the decompressed `buffer`, or why it cannot be had. `buffer` is not empty.
pub(super) fn decompressed_length(buffer: &[u8], codec: CompressionType) -> Result<u64, String> {
    let (prefix, content) = buffer.split_first_chunk::<PREFIX>().ok_or("a compressed buffer has no length")?;
    let declared = i64::from_le_bytes(*prefix);
    if declared == NOT_COMPRESSED {
        return Ok(content.len() as u64);
    }
    let declared = u64::try_from(declared).map_err(|_| format!("a compressed buffer's length is {declared}"))?;
    if declared == 0 {
        return Ok(0);
    }
    let possible = match codec {
        CompressionType::LZ4_FRAME => lz4_length(content).is_some_and(|length| length == declared),
        CompressionType::ZSTD => declared <= (content.len() as u64 / ZSTD_SMALLEST_BLOCK + 1) * ZSTD_BLOCK,
        other => return Err(format!("its compression, number {}, is not known", other.0)),
    };
    if possible {
        Ok(declared)
    } else {
        Err(format!("{} compressed bytes do not make the {declared} bytes that are declared", content.len()))
    }
}

/// Length of what a frame of LZ4 contains; None if it is not one. Every block is walked, but nothing is copied.
fn lz4_length(frame: &[u8]) -> Option<u64> {
    let mut rest = Bytes(frame);
    if rest.take(LZ4_MAGIC.len())? != LZ4_MAGIC {
        return None;
    }
    let flags = rest.byte()?;
    let block_checksum = if flags & 0x10 == 0 { 0 } else { 4 };
    let content_size = if flags & 0x08 == 0 { 0 } else { 8 };
    let dictionary = if flags & 0x01 == 0 { 0 } else { 4 };
    // The size of blocks, what is optional, and the header's checksum.
    rest.take(1 + content_size + dictionary + 1)?;
    let mut length = 0;
    loop {
        let size = u32::from_le_bytes(*rest.take(4)?.first_chunk()?);
        if size == 0 {
            return Some(length);
        }
        let block = rest.take((size & 0x7fff_ffff) as usize)?;
        let is_compressed = size >> 31 == 0;
        length += if is_compressed { lz4_block_length(block)? } else { block.len() as u64 };
        rest.take(block_checksum)?;
    }
}

/// Length of what a block of LZ4 contains. At most 255 times the block's, so it does not overflow.
fn lz4_block_length(block: &[u8]) -> Option<u64> {
    let mut rest = Bytes(block);
    let mut length = 0;
    loop {
        let token = rest.byte()?;
        let literals = rest.lz4_count(token >> 4)?;
        rest.take(usize::try_from(literals).ok()?)?;
        length += literals;
        if rest.0.is_empty() {
            return Some(length);
        }
        // The distance to what is repeated.
        rest.take(2)?;
        length += rest.lz4_count(token & 0x0f)? + 4;
    }
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// A number of four bits; from 15 on, bytes follow that are added, up to one that is not 255.
    fn lz4_count(&mut self, bits: u8) -> Option<u64> {
        let mut count = u64::from(bits);
        if bits == 15 {
            loop {
                let byte = self.byte()?;
                count += u64::from(byte);
                if byte != u8::MAX {
                    break;
                }
            }
        }
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_prefix(declared: i64, content: &[u8]) -> Vec<u8> {
        [&declared.to_le_bytes()[..], content].concat()
    }

    /// A frame of one block: a literal `a` repeated 19 more times, and five literals, as the format wants at the end.
    fn frame() -> Vec<u8> {
        let block = [0x1f, b'a', 1, 0, 0, 0x50, b'b', b'c', b'd', b'e', b'f'];
        let mut frame = LZ4_MAGIC.to_vec();
        frame.extend([0x60, 0x40, 0x82]);
        frame.extend((block.len() as u32).to_le_bytes());
        frame.extend(block);
        frame.extend([3, 0, 0, 0x80, b'x', b'y', b'z', 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn the_length_in_an_lz4_frame_is_exact() {
        assert_eq!(lz4_length(&frame()), Some(1 + 19 + 5 + 3));
        assert_eq!(decompressed_length(&with_prefix(28, &frame()), CompressionType::LZ4_FRAME), Ok(28));
        for declared in [27, 29, 3 << 30, 1 << 62, -2, i64::MIN] {
            let buffer = with_prefix(declared, &frame());
            assert!(decompressed_length(&buffer, CompressionType::LZ4_FRAME).is_err(), "{declared}");
        }
    }

    #[test]
    fn a_cut_or_other_lz4_frame_has_no_length() {
        let frame = frame();
        for length in 0..frame.len() {
            assert_eq!(lz4_length(&frame[..length]), None, "{length}");
        }
        assert_eq!(lz4_length(b"not LZ4, but long enough"), None);
    }

    #[test]
    fn the_length_of_zstandard_is_bounded_by_its_blocks() {
        let codec = CompressionType::ZSTD;
        assert_eq!(decompressed_length(&with_prefix(1 << 20, &[0; 40]), codec), Ok(1 << 20));
        for declared in [3 << 30, 1 << 46, 1 << 62, -2] {
            assert!(decompressed_length(&with_prefix(declared, &[0; 40]), codec).is_err(), "{declared}");
        }
    }

    #[test]
    fn buffers_that_are_not_compressed_or_empty() {
        assert_eq!(decompressed_length(&with_prefix(-1, b"abc"), CompressionType::ZSTD), Ok(3));
        assert_eq!(decompressed_length(&with_prefix(0, b""), CompressionType::LZ4_FRAME), Ok(0));
        assert!(decompressed_length(b"short", CompressionType::ZSTD).is_err());
        assert!(decompressed_length(&with_prefix(1, b"abc"), CompressionType(7)).is_err());
    }
}
