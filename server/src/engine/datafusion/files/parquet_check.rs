//! Checks of Parquet files, before the reader of `parquet` believes them.
//!
//! That reader allocates and recurses by the numbers in the file. What it finds out by a panic is caught elsewhere.
//! What ends the process is refused here: a schema so deep that the stack overflows, and counts and sizes by which more
//! is allocated than there is.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use super::error::ReadError;
use super::thrift::{Compact, Malformed, kind};

const MAGIC: &[u8] = b"PAR1";
/// Length of the footer's length and of the magic behind it.
const TAIL: u64 = 8;
/// Most bytes of a footer.
const MAX_FOOTER: u64 = 256 << 20;
/// Most elements of a schema: columns, and groups of columns.
const MAX_ELEMENTS: usize = 1 << 18;
/// Most groups within each other. A list takes two, a map three, and types of Arrow are nested up to 64 deep.
const MAX_DEPTH: usize = 192;
/// A page may always become as large as this.
const SMALL_PAGE: u64 = 16 << 20;

// Numbers of fields, of https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
const SCHEMA: i64 = 2;
const NUM_CHILDREN: i64 = 5;
const ROW_GROUPS: i64 = 4;
const COLUMNS: i64 = 1;
/// Place and length of a column chunk's index of pages, and of their extremes.
const INDEXES: [(usize, usize); 2] = [(4, 5), (6, 7)];
const UNCOMPRESSED_SIZE: i64 = 2;
const COMPRESSED_SIZE: i64 = 3;
const DICTIONARY_PAGE: i64 = 7;
const NUM_VALUES: i64 = 1;

/// Checks the footer of the file at `path`. A file without one is left to the reader, whose error is exact.
pub(in super::super) fn footer(path: &Path) -> Result<(), String> {
    footer_of(path).map_err(|error| error.to_string())
}

fn footer_of(path: &Path) -> Result<(), ReadError> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    if len < TAIL {
        return Ok(());
    }
    let mut tail = [0; TAIL as usize];
    file.seek(SeekFrom::Start(len - TAIL))?;
    file.read_exact(&mut tail)?;
    let [a, b, c, d, magic @ ..] = tail;
    let length = u64::from(u32::from_le_bytes([a, b, c, d]));
    if magic != MAGIC || length > len - TAIL {
        return Ok(());
    }
    if length > MAX_FOOTER {
        return Err(ReadError::invalid(format!("its footer has {length} bytes; the limit is {MAX_FOOTER} bytes")));
    }
    let mut footer = vec![0; usize::try_from(length).unwrap_or_default()];
    file.seek(SeekFrom::Start(len - TAIL - length))?;
    file.read_exact(&mut footer)?;
    for index in schema(&footer)? {
        check_index(&mut file, len, &index)?;
    }
    Ok(())
}

/// Checks an index of pages: the reader allocates by the counts of its lists.
fn check_index(file: &mut File, len: u64, index: &Range<u64>) -> Result<(), ReadError> {
    let Some(length) = index.end.checked_sub(index.start).filter(|_| index.end <= len) else {
        return Err(ReadError::invalid(format!("an index of pages at bytes {index:?} lies outside of the file")));
    };
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    file.seek(SeekFrom::Start(index.start))?;
    file.read_exact(&mut bytes)?;
    Compact::new(&bytes).skip(kind::STRUCT).map_err(|_| ReadError::invalid("an index of its pages is not valid"))
}

impl From<Malformed> for ReadError {
    fn from(_: Malformed) -> Self {
        ReadError::invalid("its metadata is not valid")
    }
}

/// Checks the schema in a footer. The places of the indexes of pages.
fn schema(footer: &[u8]) -> Result<Vec<Range<u64>>, ReadError> {
    let mut reader = Compact::new(footer);
    let (mut indexes, mut last) = (Vec::new(), 0);
    while let Some((number, of_kind)) = reader.field(&mut last)? {
        match (number, of_kind) {
            (SCHEMA, kind::LIST) => elements(&mut reader)?,
            (ROW_GROUPS, kind::LIST) => structs(&mut reader, |reader| row_group(reader, &mut indexes))?,
            _ => reader.skip(of_kind)?,
        }
    }
    Ok(indexes)
}

/// Reads a list of structs.
fn structs<'a>(
    reader: &mut Compact<'a>,
    mut read: impl FnMut(&mut Compact<'a>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let (count, of_kind) = reader.list()?;
    if count > 0 && of_kind != kind::STRUCT {
        return Err(Malformed);
    }
    (0..count).try_for_each(|_| read(reader))
}

fn row_group(reader: &mut Compact<'_>, indexes: &mut Vec<Range<u64>>) -> Result<(), Malformed> {
    let mut last = 0;
    while let Some((number, of_kind)) = reader.field(&mut last)? {
        match (number, of_kind) {
            (COLUMNS, kind::LIST) => structs(reader, |reader| column(reader, indexes))?,
            _ => reader.skip(of_kind)?,
        }
    }
    Ok(())
}

fn column(reader: &mut Compact<'_>, indexes: &mut Vec<Range<u64>>) -> Result<(), Malformed> {
    let (mut values, mut last) = ([None; 8], 0);
    while let Some((number, of_kind)) = reader.field(&mut last)? {
        let slot = usize::try_from(number).ok().and_then(|number| values.get_mut(number));
        match (slot, of_kind) {
            (Some(slot), kind::I32 | kind::I64) => *slot = Some(reader.integer()?),
            _ => reader.skip(of_kind)?,
        }
    }
    for (place, length) in INDEXES {
        // Without both there is no index.
        let (Some(place), Some(length)) = (values[place], values[length]) else { continue };
        let place = u64::try_from(place).map_err(|_| Malformed)?;
        let length = u64::try_from(length).map_err(|_| Malformed)?;
        if length > 0 {
            indexes.push(place..place.saturating_add(length));
        }
    }
    Ok(())
}

fn elements(reader: &mut Compact<'_>) -> Result<(), ReadError> {
    let (count, of_kind) = reader.list()?;
    if count > MAX_ELEMENTS {
        return Err(ReadError::invalid(format!("its schema has {count} elements; the limit is {MAX_ELEMENTS}")));
    }
    if count > 0 && of_kind != kind::STRUCT {
        return Err(Malformed.into());
    }
    // The children that are still to come, of each group that is open.
    let mut open: Vec<usize> = Vec::new();
    for _ in 0..count {
        if let Some(rest) = open.last_mut() {
            *rest -= 1;
        }
        let children = number_of_children(reader)?;
        let known = usize::try_from(children).ok().filter(|children| *children < count);
        let children = known.ok_or_else(|| {
            ReadError::invalid(format!("a group of its schema has {children} children, and there are {count} elements"))
        })?;
        if children > 0 {
            open.push(children);
        }
        if open.len() > MAX_DEPTH {
            return Err(ReadError::invalid(format!("its types are nested more than {MAX_DEPTH} deep")));
        }
        while open.last() == Some(&0) {
            open.pop();
        }
    }
    Ok(())
}

fn number_of_children(reader: &mut Compact<'_>) -> Result<i64, ReadError> {
    let (mut children, mut last) = (0, 0);
    while let Some((number, of_kind)) = reader.field(&mut last)? {
        if number == NUM_CHILDREN && of_kind == kind::I32 {
            children = reader.integer()?;
        } else {
            reader.skip(of_kind)?;
        }
    }
    Ok(children)
}

/// Checks the pages in `bytes`, which begin with a page: their sizes, and the counts of dictionaries. A page becomes at
/// most `ratio` times as large as it is in the file.
///
/// What follows a page that cannot be understood is not checked: the reader cannot read it either.
pub(in super::super) fn pages(mut bytes: &[u8], ratio: u64) -> Result<(), String> {
    while !bytes.is_empty() {
        let mut reader = Compact::new(bytes);
        let Ok(page) = Page::read(&mut reader) else { return Ok(()) };
        page.check(ratio)?;
        let Some(after) = usize::try_from(page.compressed).ok().and_then(|size| reader.rest().get(size..)) else {
            return Ok(());
        };
        bytes = after;
    }
    Ok(())
}

/// What the header of a page says.
#[derive(Default)]
struct Page {
    uncompressed: i64,
    compressed: i64,
    /// Number of values of a dictionary.
    dictionary: i64,
}

impl Page {
    fn read(reader: &mut Compact<'_>) -> Result<Self, Malformed> {
        let (mut page, mut last) = (Page::default(), 0);
        while let Some((number, of_kind)) = reader.field(&mut last)? {
            match (number, of_kind) {
                (UNCOMPRESSED_SIZE, kind::I32) => page.uncompressed = reader.integer()?,
                (COMPRESSED_SIZE, kind::I32) => page.compressed = reader.integer()?,
                (DICTIONARY_PAGE, kind::STRUCT) => page.dictionary = Page::values(reader)?,
                _ => reader.skip(of_kind)?,
            }
        }
        Ok(page)
    }

    fn values(reader: &mut Compact<'_>) -> Result<i64, Malformed> {
        let (mut values, mut last) = (0, 0);
        while let Some((number, of_kind)) = reader.field(&mut last)? {
            if number == NUM_VALUES && of_kind == kind::I32 {
                values = reader.integer()?;
            } else {
                reader.skip(of_kind)?;
            }
        }
        Ok(values)
    }

    fn check(&self, ratio: u64) -> Result<(), String> {
        let Page { uncompressed, compressed, dictionary } = self;
        let size = |size: &i64| u64::try_from(*size).map_err(|_| format!("a page has a size of {size} bytes"));
        let most = size(compressed)?.saturating_mul(ratio).max(SMALL_PAGE);
        if size(uncompressed)? > most {
            return Err(format!("a page of {compressed} bytes is said to become {uncompressed} bytes"));
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

    /// A footer whose schema has elements with these numbers of children.
    fn footer(children: &[i64]) -> Vec<u8> {
        let mut bytes = vec![0x15, 2, 0x19, 0xfc];
        let mut count = children.len();
        while count > 0x7f {
            bytes.push(count as u8 | 0x80);
            count >>= 7;
        }
        bytes.push(count as u8);
        for children in children {
            bytes.push(0x55);
            bytes.extend(varint(*children));
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }

    fn page(uncompressed: i64, compressed: i64, dictionary: Option<i64>) -> Vec<u8> {
        let mut bytes = vec![0x15, 0, 0x15];
        bytes.extend(varint(uncompressed));
        bytes.push(0x15);
        bytes.extend(varint(compressed));
        if let Some(values) = dictionary {
            bytes.extend([0x4c, 0x15]);
            bytes.extend(varint(values));
            bytes.push(0);
        }
        bytes.push(0);
        bytes.extend(vec![7; usize::try_from(compressed).unwrap_or_default()]);
        bytes
    }

    #[test]
    fn schemas_have_a_depth_and_their_children() {
        assert!(schema(&footer(&[])).is_ok());
        assert!(schema(&footer(&[2, 0, 1, 0])).is_ok());
        let deep = |depth: usize| footer(&[vec![1; depth], vec![0]].concat());
        assert!(schema(&deep(MAX_DEPTH)).is_ok());
        for bad in [deep(MAX_DEPTH + 1), deep(100_000), footer(&[i64::from(i32::MAX), 0]), footer(&[-1, 0])] {
            assert!(schema(&bad).is_err());
        }
        // A list that is said to have more elements than there are bytes.
        assert!(schema(&[0x29, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0]).is_err());
    }

    #[test]
    fn many_groups_side_by_side_are_not_deep() {
        let mut children = vec![1000];
        (0..1000).for_each(|_| children.extend([1, 0]));
        assert!(schema(&footer(&children)).is_ok());
    }

    #[test]
    fn pages_do_not_become_too_large() {
        let good = [page(100, 10, Some(25)), page(1 << 20, 40, None), page(0, 0, None)].concat();
        assert_eq!(pages(&good, 32), Ok(()));
        for bad in [
            page(i64::from(i32::MAX), 40, None),
            page(100, 10, Some(101)),
            page(100, 10, Some(-1)),
            page(-1, 10, None),
            page(10, -1, None),
        ] {
            assert!(pages(&bad, 32).is_err());
            assert!(pages(&[good.clone(), bad].concat(), 32).is_err());
        }
        assert_eq!(pages(&good[..good.len() - 1], 32), Ok(()));
        assert_eq!(pages(&page(i64::from(i32::MAX), 40, None), u64::MAX), Ok(()));
    }
}
