//! Checks of Parquet files' metadata, before the reader of `parquet` believes it.
//!
//! That reader allocates and recurses by the numbers in the file. Its panics are caught by `caught.rs`. Numbers that
//! end the process are refused here: a schema so deep that the stack overflows, and counts and sizes by which more
//! is allocated than there is.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use super::error::ReadError;
use super::parquet_fields::{self as fields, FOOTER};
use super::thrift::{Compact, Fields, Malformed, Shape};

const MAGIC: &[u8] = b"PAR1";
/// Length of the footer's length and of the magic behind it.
const TAIL: u64 = 8;
/// Most bytes of a footer.
const MAX_FOOTER: u64 = 256 << 20;
/// Most elements of a schema: columns, and groups of columns.
const MAX_ELEMENTS: usize = 1 << 18;
/// Most groups within each other. A list takes two, a map three, and types of Arrow are nested up to 64 deep.
const MAX_DEPTH: usize = 192;
/// Most row groups. The reader of `parquet` numbers them with 16 bits, and allocates for all before it sees the first.
const MAX_ROW_GROUPS: usize = 1 << 15;
/// Indexes with at most this many bytes between them are read at once.
const INDEX_GAP: u64 = 64 << 10;
/// Most bytes that are read at once for several indexes.
const INDEX_RUN: u64 = 8 << 20;

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
    let footer = read_at(&mut file, len - TAIL - length..len - TAIL)?;
    check_indexes(&mut file, len, metadata(&footer)?)
}

fn read_at(file: &mut File, place: Range<u64>) -> Result<Vec<u8>, ReadError> {
    let mut bytes = vec![0; usize::try_from(place.end - place.start).unwrap_or_default()];
    file.seek(SeekFrom::Start(place.start))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl From<Malformed> for ReadError {
    fn from(_: Malformed) -> Self {
        ReadError::invalid("its metadata is not valid")
    }
}

/// An index of the pages of a column chunk.
#[derive(Clone)]
struct Index {
    place: Range<u64>,
    fields: Fields,
}

/// Checks indexes of pages: the reader allocates by the counts of their lists. Together they are not longer than the
/// file, so that a footer that names the same bytes many times does not make many reads of one.
fn check_indexes(file: &mut File, len: u64, mut indexes: Vec<Index>) -> Result<(), ReadError> {
    let mut total = 0_u64;
    for Index { place, .. } in &indexes {
        if place.end > len {
            return Err(ReadError::invalid(format!("an index of pages at bytes {place:?} lies outside of the file")));
        }
        total = total.saturating_add(place.end - place.start);
    }
    if total > len {
        let reason = format!("its indexes of pages have {total} bytes together, and the file has {len} bytes");
        return Err(ReadError::invalid(reason));
    }
    indexes.sort_unstable_by_key(|index| index.place.start);
    let mut rest = &indexes[..];
    while !rest.is_empty() {
        let (run, place) = index_run(rest);
        let bytes = read_at(file, place.clone())?;
        for index in &rest[..run] {
            let within = |at: u64| usize::try_from(at - place.start).unwrap_or_default();
            let bytes = &bytes[within(index.place.start)..within(index.place.end)];
            let valid = Compact::new(bytes).value(&Shape::Struct(index.fields));
            valid.map_err(|_| ReadError::invalid("an index of its pages is not valid"))?;
        }
        rest = &rest[run..];
    }
    Ok(())
}

/// The number of the first indexes, in the order of the file, that are read at once, at least 1, and their place.
fn index_run(indexes: &[Index]) -> (usize, Range<u64>) {
    let mut place = indexes.first().map_or(0..0, |first| first.place.clone());
    for (count, index) in indexes.iter().enumerate().skip(1) {
        let end = place.end.max(index.place.end);
        if index.place.start > place.end.saturating_add(INDEX_GAP) || end - place.start > INDEX_RUN {
            return (count, place);
        }
        place.end = end;
    }
    (indexes.len(), place)
}

/// Checks the metadata in a footer. The indexes of pages.
fn metadata(footer: &[u8]) -> Result<Vec<Index>, ReadError> {
    let mut indexes = Vec::new();
    Compact::new(footer).read_struct(FOOTER, |reader, number| {
        match number {
            fields::SCHEMA => schema(reader)?,
            fields::ROW_GROUPS => row_groups(reader, &mut indexes)?,
            _ => return Ok(false),
        }
        Ok::<_, ReadError>(true)
    })?;
    Ok(indexes)
}

fn row_groups(reader: &mut Compact<'_>, indexes: &mut Vec<Index>) -> Result<(), ReadError> {
    let count = reader.list(&Shape::Struct(fields::ROW_GROUP))?;
    if count > MAX_ROW_GROUPS {
        return Err(ReadError::invalid(format!("it has {count} row groups; the limit is {MAX_ROW_GROUPS}")));
    }
    for _ in 0..count {
        reader.read_struct(fields::ROW_GROUP, |reader, number| {
            if number != fields::COLUMNS {
                return Ok(false);
            }
            let columns = reader.list(&Shape::Struct(fields::COLUMN))?;
            (0..columns).try_for_each(|_| column(reader, indexes)).map(|()| true)
        })?;
    }
    Ok(())
}

fn column(reader: &mut Compact<'_>, indexes: &mut Vec<Index>) -> Result<(), Malformed> {
    let (mut offsets, mut extremes) = ((None, None), (None, None));
    reader.read_struct(fields::COLUMN, |reader, number| {
        match number {
            fields::OFFSET_INDEX_PLACE => offsets.0 = Some(reader.i64()?),
            fields::OFFSET_INDEX_LENGTH => offsets.1 = Some(reader.i32()?),
            fields::COLUMN_INDEX_PLACE => extremes.0 = Some(reader.i64()?),
            fields::COLUMN_INDEX_LENGTH => extremes.1 = Some(reader.i32()?),
            _ => return Ok(false),
        }
        Ok::<_, Malformed>(true)
    })?;
    for (index, fields) in [(offsets, fields::OFFSET_INDEX), (extremes, fields::COLUMN_INDEX)] {
        // Without both there is no index.
        let (Some(place), Some(length)) = index else { continue };
        let place = u64::try_from(place).map_err(|_| Malformed::Invalid)?;
        let length = u64::try_from(length).map_err(|_| Malformed::Invalid)?;
        if length > 0 {
            indexes.push(Index { place: place..place.saturating_add(length), fields });
        }
    }
    Ok(())
}

fn schema(reader: &mut Compact<'_>) -> Result<(), ReadError> {
    let count = reader.list(&Shape::Struct(fields::ELEMENT))?;
    if count > MAX_ELEMENTS {
        return Err(ReadError::invalid(format!("its schema has {count} elements; the limit is {MAX_ELEMENTS}")));
    }
    // The children that are still to come, of each group that is open.
    let mut open: Vec<usize> = Vec::new();
    for _ in 0..count {
        if let Some(rest) = open.last_mut() {
            *rest -= 1;
        }
        let children = reader.i32_of_struct(fields::ELEMENT, fields::NUM_CHILDREN)?;
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn unsigned(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value > 0x7f {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    fn signed(value: i64) -> Vec<u8> {
        unsigned(((value << 1) ^ (value >> 63)).cast_unsigned())
    }

    /// A footer whose schema begins with `head`, and has elements with these numbers of children in a field with this
    /// head.
    fn footer_with(head: &[u8], children_head: &[u8], children: &[i64]) -> Vec<u8> {
        let mut bytes = [&[0x15, 2], head, &[0xfc]].concat();
        bytes.extend(unsigned(children.len() as u64));
        for children in children {
            bytes.extend(children_head);
            bytes.extend(signed(*children));
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }

    fn footer(children: &[i64]) -> Vec<u8> {
        footer_with(&[0x19], &[0x55], children)
    }

    fn deep(depth: usize) -> Vec<i64> {
        [vec![1; depth], vec![0]].concat()
    }

    #[test]
    fn schemas_have_a_depth_and_their_children() {
        assert!(metadata(&footer(&[])).is_ok());
        assert!(metadata(&footer(&[2, 0, 1, 0])).is_ok());
        assert!(metadata(&footer(&deep(MAX_DEPTH))).is_ok());
        for bad in [deep(MAX_DEPTH + 1), deep(100_000), vec![i64::from(i32::MAX), 0], vec![-1, 0]] {
            assert!(metadata(&footer(&bad)).is_err());
        }
        // A list that is said to have more elements than there are bytes.
        assert!(metadata(&[0x29, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0]).is_err());
        let groups = [&[0x49, 0xfc], &unsigned(40_000)[..], &[0; 40_001]].concat();
        assert!(metadata(&groups).is_err());
    }

    #[test]
    fn many_groups_side_by_side_are_not_deep() {
        let mut children = vec![1000];
        (0..1000).for_each(|_| children.extend([1, 0]));
        assert!(metadata(&footer(&children)).is_ok());
    }

    /// The reader of `parquet` takes each of these for a deep schema.
    #[test]
    fn the_depth_cannot_be_hidden() {
        let deep = deep(MAX_DEPTH + 1);
        // The number of children as 16 and as 64 bits.
        assert!(metadata(&footer_with(&[0x19], &[0x54], &deep)).is_err());
        assert!(metadata(&footer_with(&[0x19], &[0x56], &deep)).is_err());
        // The schema as a set; and in the field 65538, whose low bits are those of the schema's number.
        assert!(metadata(&footer_with(&[0x1a], &[0x55], &deep)).is_err());
        assert!(metadata(&footer_with(&[0x09, 0x84, 0x80, 0x08], &[0x55], &deep)).is_err());
        assert!(metadata(&footer_with(&[0x19], &[0x05, 0x8a, 0x80, 0x08], &deep)).is_err());
        // Their long forms are fields as any.
        assert!(metadata(&footer_with(&[0x09, 4], &[0x05, 10], &[1, 0])).is_ok());
        assert!(metadata(&footer_with(&[0x09, 4], &[0x05, 10], &deep)).is_err());
        // The number of children is 1 with 2^32, of which the reader keeps 1.
        let beyond: Vec<i64> = deep.iter().map(|children| children + (1 << 32)).collect();
        assert!(metadata(&footer(&beyond)).is_err());
    }

    #[test]
    fn what_is_before_the_schema_cannot_hide_it() {
        // Behind each of these the reader sees the schema; by the kinds in the file it is a part of a value.
        let schema = &footer(&deep(MAX_DEPTH + 1))[2..];
        let hiding: [&[u8]; 4] = [
            // The version as bytes.
            &[0x18, 0x20],
            // An unknown list, and an unknown map, of booleans.
            &[0x09, 0x80, 0x01, 0x41],
            &[0x0b, 0x80, 0x01, 0x02, 0x11],
            // An unknown struct that ends with a byte that is not 0.
            &[0x0c, 0x80, 0x01, 0x10],
        ];
        for hiding in hiding {
            let long = [&[0x09, 4], &schema[1..]].concat();
            assert!(metadata(&[hiding, &long[..]].concat()).is_err(), "{hiding:?}");
        }
    }

    fn index(place: Range<u64>) -> Index {
        Index { place, fields: fields::OFFSET_INDEX }
    }

    #[test]
    fn indexes_are_read_in_runs_and_are_not_longer_than_the_file() {
        let path = std::env::temp_dir().join(format!("indexes-{}", std::process::id()));
        let one = [0x19, 0x1c, 0x16, 8, 0x15, 20, 0x16, 0, 0, 0];
        let mut bytes = one.repeat(3);
        bytes.extend(vec![0xff; 1 << 17]);
        bytes.extend(one);
        File::create(&path).and_then(|mut file| file.write_all(&bytes)).unwrap();
        let mut file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let len = bytes.len() as u64;
        let check = |file: &mut File, indexes: &[Index]| check_indexes(file, len, indexes.to_vec());
        let good = [index(len - 10..len), index(20..30), index(0..10), index(0..10), index(10..20)];
        assert!(check(&mut file, &good).is_ok());
        assert!(check(&mut file, &[]).is_ok());
        for bad in [index(1..11), index(30..40), index(len - 10..len + 1), index(0..9)] {
            assert!(check(&mut file, &[&good[..], &[bad]].concat()).is_err());
        }
        let whole = Index { place: 0..len, fields: &[] };
        assert!(check(&mut file, std::slice::from_ref(&whole)).is_ok());
        assert!(check(&mut file, &[whole.clone(), whole]).is_err());
    }

    #[test]
    fn indexes_that_are_near_are_read_at_once() {
        let near = [index(4..10), index(5..6), index(10..20), index(20 + INDEX_GAP..21 + INDEX_GAP)];
        assert_eq!(index_run(&near), (4, 4..21 + INDEX_GAP));
        assert_eq!(index_run(&[index(4..10), index(11 + INDEX_GAP..12 + INDEX_GAP)]), (1, 4..10));
        assert_eq!(index_run(&[index(0..INDEX_RUN), index(INDEX_RUN..INDEX_RUN + 1)]), (1, 0..INDEX_RUN));
    }
}
