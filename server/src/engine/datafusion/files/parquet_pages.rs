//! Checks of Parquet files' pages, before the reader of `parquet` believes their headers.

use super::parquet_fields as fields;
use super::thrift::{Compact, Malformed};

/// A page may always become as large as this.
const SMALL_PAGE: u64 = 16 << 20;

/// Checks the pages in `bytes`, which begin with a page: their sizes, and the counts of dictionaries. A page becomes at
/// most `ratio` times as large as it is in the file.
///
/// A page whose header ends with the bytes is left to the reader, which finds the same end.
pub(in super::super) fn pages(mut bytes: &[u8], ratio: u64) -> Result<(), String> {
    while !bytes.is_empty() {
        bytes = page(bytes, ratio)?;
    }
    Ok(())
}

/// Checks the first page in `bytes`, as [`pages`] does. What follows it; nothing, if it does not end in `bytes`.
pub(in super::super) fn page(bytes: &[u8], ratio: u64) -> Result<&[u8], String> {
    let mut reader = Compact::new(bytes);
    let page = match Page::read(&mut reader) {
        Ok(page) => page,
        Err(Malformed::Ended) => return Ok(&[]),
        Err(Malformed::Invalid) => return Err("the header of a page is not valid".to_owned()),
    };
    let rest = reader.rest();
    page.check(rest.len(), ratio)?;
    Ok(usize::try_from(page.compressed).ok().and_then(|size| rest.get(size..)).unwrap_or_default())
}

/// The content of a page's header.
#[derive(Default)]
struct Page {
    uncompressed: i32,
    compressed: i32,
    /// Number of values of a dictionary.
    dictionary: i32,
}

impl Page {
    fn read(reader: &mut Compact<'_>) -> Result<Self, Malformed> {
        let mut page = Page::default();
        reader.read_struct(fields::PAGE, |reader, number| {
            match number {
                fields::UNCOMPRESSED_SIZE => page.uncompressed = reader.i32()?,
                fields::COMPRESSED_SIZE => page.compressed = reader.i32()?,
                fields::DICTIONARY_PAGE => {
                    page.dictionary = reader.i32_of_struct(fields::DICTIONARY, fields::NUM_VALUES)?
                }
                _ => return Ok(false),
            }
            Ok::<_, Malformed>(true)
        })?;
        Ok(page)
    }

    /// Checks a page with `rest` bytes behind its header. The reader takes these, and not the size in the header, if it
    /// has the place of the page from an index.
    fn check(&self, rest: usize, ratio: u64) -> Result<(), String> {
        let Page { uncompressed, compressed, dictionary } = self;
        let size = |size: &i32| u64::try_from(*size).map_err(|_| format!("a page has a size of {size} bytes"));
        let present = size(compressed)?.min(rest as u64);
        if size(uncompressed)? > present.saturating_mul(ratio).max(SMALL_PAGE) {
            return Err(format!("a page of {present} bytes is said to become {uncompressed} bytes"));
        }
        // Each value takes a byte at least.
        if !(0..=*uncompressed).contains(dictionary) {
            return Err(format!("a dictionary of {uncompressed} bytes is said to have {dictionary} values"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(value: i64) -> Vec<u8> {
        let mut value = ((value << 1) ^ (value >> 63)).cast_unsigned();
        let mut bytes = Vec::new();
        while value > 0x7f {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    /// A page with the size before compression in a field with this head.
    fn page_with(head: u8, uncompressed: i64, compressed: i64, dictionary: Option<i64>) -> Vec<u8> {
        let mut bytes = vec![0x15, 0, head];
        bytes.extend(varint(uncompressed));
        bytes.push(0x15);
        bytes.extend(varint(compressed));
        if let Some(values) = dictionary {
            bytes.extend([0x4c, 0x15]);
            bytes.extend(varint(values));
            bytes.push(0);
        }
        bytes.push(0);
        let present = usize::try_from(compressed).unwrap_or_default().min(1000);
        bytes.extend(vec![7; present]);
        bytes
    }

    fn plain(uncompressed: i64, compressed: i64, dictionary: Option<i64>) -> Vec<u8> {
        page_with(0x15, uncompressed, compressed, dictionary)
    }

    #[test]
    fn pages_do_not_become_too_large() {
        let good = [plain(100, 10, Some(25)), plain(1 << 20, 40, None), plain(0, 0, None)].concat();
        assert_eq!(pages(&good, 32), Ok(()));
        for bad in [
            plain(i64::from(i32::MAX), 40, None),
            plain(100, 10, Some(101)),
            plain(100, 10, Some(-1)),
            plain(-1, 10, None),
            plain(10, -1, None),
        ] {
            assert!(pages(&bad, 32).is_err());
            assert!(pages(&[good.clone(), bad].concat(), 32).is_err());
        }
        assert_eq!(pages(&good[..good.len() - 1], 32), Ok(()));
        assert_eq!(pages(&plain(i64::from(i32::MAX), 40, None), u64::MAX), Ok(()));
    }

    #[test]
    fn bytes_that_are_not_there_do_not_allow_a_large_page() {
        let most = i64::from(i32::MAX);
        assert!(pages(&plain(most, most, None), 32).is_err());
        // Where the chunk ends early a small page is left to the reader.
        assert_eq!(pages(&plain(100, most, None), 32), Ok(()));
    }

    #[test]
    fn sizes_cannot_be_hidden() {
        let size = i64::from(i32::MAX);
        // Of 16 or 64 bits, or with bits beyond 32, which the reader drops.
        for head in [0x14, 0x16] {
            assert!(pages(&page_with(head, size, 40, None), 32).is_err());
        }
        for bad in [plain((1 << 32) + size, 40, None), plain(100, (1 << 32) + 10, None), plain(100, 10, Some(1 << 32))]
        {
            assert!(pages(&bad, 32).is_err());
        }
        // The field 65538, an unknown list of booleans before the size, and an end that is not 0.
        let tail = &plain(size, 40, None)[2..];
        for hiding in [&[0x15, 0, 0x05, 0x84, 0x80, 0x08][..], &[0x15, 0, 0x09, 0x80, 0x01, 0x41]] {
            assert!(pages(&[hiding, tail].concat(), 32).is_err());
        }
        let mut ended = plain(100, 10, None);
        ended[7] = 0x30;
        assert_eq!(pages(&[ended.clone(), plain(100, 10, None)].concat(), 32), Ok(()));
        assert!(pages(&[ended, plain(size, 10, None)].concat(), 32).is_err());
        // The dictionary as a list.
        let mut list = plain(100, 10, Some(101));
        let at = list.iter().position(|byte| *byte == 0x4c).unwrap();
        list[at] = 0x49;
        assert!(pages(&list, 32).is_err());
    }
}
