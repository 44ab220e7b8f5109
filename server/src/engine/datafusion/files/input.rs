//! The bytes of a text file: decompressed, without a byte order mark, whole or a part of its lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use super::error::ReadError;
use crate::catalog::Compression;

const UTF8_BOM: &[u8] = &[0xEF, 0xBB, 0xBF];
const BUFFER: usize = 256 * 1024;

/// The text of the file at `path`. Members or frames of a compressed file follow each other.
///
/// `range` chooses the lines whose first byte lies in it, bytes of the file. A line ends with a line feed, and only
/// with it: a file of carriage returns is a single line. Ranges that cover the file give each line once.
pub(super) fn open(
    path: &Path,
    compression: Compression,
    range: Option<Range<u64>>,
) -> Result<Box<dyn Read + Send>, ReadError> {
    let file = File::open(path)?;
    match range {
        None => text(decompressed(file, compression)?),
        Some(_) if compression != Compression::None => {
            Err(ReadError::invalid("a compressed file cannot be read in parts"))
        }
        Some(range) if range.start == 0 => text(Box::new(Lines::open(file, range)?)),
        Some(range) => Ok(Box::new(Lines::open(file, range)?)),
    }
}

/// Number of line breaks before the first line whose first byte is at or after `start`: what a part's line numbers
/// lack. Reads the file up to there, so only an error is worth it.
pub(super) fn lines_before(path: &Path, start: u64) -> io::Result<u64> {
    if start == 0 {
        return Ok(0);
    }
    let mut reader = BufReader::with_capacity(BUFFER, File::open(path)?);
    let (mut lines, mut offset, mut previous) = (0, 0_u64, 0);
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(lines);
        }
        for &byte in bytes {
            lines += u64::from(is_new_line(byte, previous));
            previous = byte;
            offset += 1;
            if byte == b'\n' && offset >= start {
                return Ok(lines);
            }
        }
        let used = bytes.len();
        reader.consume(used);
    }
}

/// Whether a line break is to be counted at `byte`: CRLF counts once, at its first byte.
pub(super) fn is_new_line(byte: u8, previous: u8) -> bool {
    byte == b'\r' || (byte == b'\n' && previous != b'\r')
}

/// Length of the byte order mark of an uncompressed file.
pub(super) fn bom_length(path: &Path) -> io::Result<u64> {
    let mut head = Vec::new();
    File::open(path)?.take(UTF8_BOM.len() as u64).read_to_end(&mut head)?;
    Ok(if head == UTF8_BOM { head.len() as u64 } else { 0 })
}

fn decompressed(file: File, compression: Compression) -> io::Result<Box<dyn Read + Send>> {
    // Without a member there is nothing to decode: an empty file, whatever its name says.
    if file.metadata()?.len() == 0 {
        return Ok(Box::new(io::empty()));
    }
    let reader: Box<dyn Read + Send> = match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Compression::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(file)),
        Compression::Xz => Box::new(liblzma::read::XzDecoder::new_multi_decoder(file)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(file)?),
    };
    Ok(reader)
}

/// `reader` without the mark of UTF-8. Other encodings are refused: bytes would be taken for letters.
fn text(mut reader: Box<dyn Read + Send>) -> Result<Box<dyn Read + Send>, ReadError> {
    let mut head = Vec::new();
    reader.by_ref().take(4).read_to_end(&mut head)?;
    let is_utf16 = match head.as_slice() {
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => true,
        // Two letters of ASCII without a mark.
        [a, 0, b, 0] | [0, a, 0, b] => *a != 0 && *b != 0,
        _ => false,
    };
    if is_utf16 {
        return Err(ReadError::invalid("the text is UTF-16 or UTF-32; convert it to UTF-8"));
    }
    if head.starts_with(UTF8_BOM) {
        head.drain(..UTF8_BOM.len());
    }
    Ok(Box::new(Cursor::new(head).chain(reader)))
}

/// The lines whose first byte lies in a range.
struct Lines {
    reader: BufReader<File>,
    /// Bytes up to the range's end; after them the last line is read to its end.
    left: u64,
    /// The last byte that was read.
    last: u8,
}

impl Lines {
    fn open(mut file: File, range: Range<u64>) -> io::Result<Self> {
        // From the byte before the range: if it is a line feed, the range begins with a line.
        let start = range.start.saturating_sub(1);
        file.seek(SeekFrom::Start(start))?;
        let reader = BufReader::with_capacity(BUFFER, file);
        let mut lines = Lines { reader, left: range.end.saturating_sub(start), last: b'\n' };
        if range.start > 0 {
            lines.skip_line()?;
        }
        Ok(lines)
    }

    fn skip_line(&mut self) -> io::Result<()> {
        while self.left > 0 {
            let bytes = filled(&mut self.reader)?;
            if bytes.is_empty() {
                self.left = 0;
                break;
            }
            let found = memchr::memchr(b'\n', bytes).map(|at| at + 1);
            let used = found.unwrap_or(bytes.len());
            self.reader.consume(used);
            // A line that ends beyond the range: the next does not begin in it.
            self.left = self.left.saturating_sub(used as u64);
            if found.is_some() {
                break;
            }
        }
        Ok(())
    }
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && self.last == b'\n' {
            return Ok(0);
        }
        let bytes = filled(&mut self.reader)?;
        let mut count = bytes.len().min(buffer.len());
        if self.left > 0 {
            count = count.min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= count as u64;
        } else if let Some(at) = memchr::memchr(b'\n', &bytes[..count]) {
            count = at + 1;
        }
        buffer[..count].copy_from_slice(&bytes[..count]);
        if let Some(&last) = bytes[..count].last() {
            self.last = last;
        }
        self.reader.consume(count);
        Ok(count)
    }
}

/// As `fill_buf`, but goes on after a signal.
pub(super) fn filled<R: BufRead>(reader: &mut R) -> io::Result<&[u8]> {
    loop {
        match reader.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // The filled bytes are returned without a read.
    reader.fill_buf()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, bytes).unwrap();
        (directory, path)
    }

    fn read(bytes: &[u8], compression: Compression, range: Option<Range<u64>>) -> Result<String, ReadError> {
        let (_directory, path) = file(bytes);
        let mut text = String::new();
        open(&path, compression, range)?.read_to_string(&mut text)?;
        Ok(text)
    }

    fn packed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        match compression {
            Compression::None => bytes.to_vec(),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zstd => zstd::stream::encode_all(bytes, 1).unwrap(),
        }
    }

    #[test]
    fn members_follow_each_other_and_truncated_ones_are_errors() {
        for compression in [Compression::Gzip, Compression::Bzip2, Compression::Xz, Compression::Zstd] {
            let one = packed(compression, b"a,b\n");
            let two = [one.clone(), packed(compression, b"1,2\n3,4\n")].concat();
            assert_eq!(read(&two, compression, None).unwrap(), "a,b\n1,2\n3,4\n", "{compression:?}");
            for end in [two.len() - 1, one.len() + 5, one.len() - 1, 3] {
                assert!(read(&two[..end], compression, None).is_err(), "{compression:?} of {end} bytes");
            }
            let bom = packed(compression, b"\xEF\xBB\xBFa\n");
            assert_eq!(read(&bom, compression, None).unwrap(), "a\n");
            assert_eq!(read(&packed(compression, b""), compression, None).unwrap(), "");
            assert_eq!(read(b"", compression, None).unwrap(), "");
            assert!(read(&two, compression, Some(0..4)).is_err());
        }
    }

    #[test]
    fn marks() {
        assert_eq!(read(b"\xEF\xBB\xBFx", Compression::None, None).unwrap(), "x");
        assert_eq!(read(b"\xEF\xBB\xBF", Compression::None, None).unwrap(), "");
        assert_eq!(read(b"x", Compression::None, None).unwrap(), "x");
        for utf16 in [b"\xFF\xFEa\0".as_slice(), b"\xFE\xFF\0a", b"a\0,\0b\0", b"\0a\0,\0b"] {
            let error = read(utf16, Compression::None, None).unwrap_err().to_string();
            assert!(error.contains("UTF-16"), "{error}");
        }
    }

    #[test]
    fn ranges_give_each_line_once() {
        let texts = ["ab\nc\n\nlonger line\nlast", "\n\n\n", "one", "a\r\nb\r\nc\r\n", "a\rb\rc", "", "\u{feff}a\nb\n"];
        for text in texts {
            let whole = text.trim_start_matches('\u{feff}');
            for step in 1..=text.len().max(1) as u64 + 1 {
                let mut parts = String::new();
                let mut start = 0;
                while start < text.len() as u64 {
                    let part = read(text.as_bytes(), Compression::None, Some(start..start + step)).unwrap();
                    parts.push_str(&part);
                    start += step;
                }
                assert_eq!(parts, whole, "{text:?} by {step}");
            }
        }
        assert_eq!(read(b"a\nb\nc\n", Compression::None, Some(2..3)).unwrap(), "b\n");
        assert_eq!(read(b"a\nb\nc\n", Compression::None, Some(1..2)).unwrap(), "");
        assert_eq!(read(b"a\nb\n", Compression::None, Some(9..12)).unwrap(), "");
    }

    #[test]
    fn lines_before_a_part() {
        let (_directory, path) = file(b"a\r\nb\rc\nd\n");
        let counts: Vec<u64> = (0..=9).map(|start| lines_before(&path, start).unwrap()).collect();
        // Line feeds end at 3, 7 and 9; the lone carriage return counts as well.
        assert_eq!(counts, [0, 1, 1, 1, 3, 3, 3, 3, 4, 4]);
    }
}
