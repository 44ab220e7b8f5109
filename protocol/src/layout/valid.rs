//! Checks everything that safe use of an array relies on, by passes over whole buffers, without a branch or a call for
//! each value.
//!
//! A pass returns yes or no. Only after a no does a second pass look at the values one by one, to name the first
//! invalid one in the error.

use arrow_array::OffsetSizeTrait;
use arrow_buffer::{ArrowNativeType, Buffer, NullBuffer};
use arrow_data::{ByteView, MAX_INLINE_VIEW_LEN};

use super::error::LayoutProblem;

/// Checks that offsets are not negative, never descend, and end at `limit` at most. Returns the first and the last.
pub(super) fn offsets<O: OffsetSizeTrait>(offsets: &[O], limit: usize) -> Result<(usize, usize), LayoutProblem> {
    let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else { return Ok((0, 0)) };
    let zero = O::usize_as(0);
    let descends = offsets.iter().zip(&offsets[1..]).fold(false, |descends, (a, b)| descends | (a > b));
    if descends || first < zero {
        let at = offsets.windows(2).position(|pair| pair[0] > pair[1]).map_or(0, |at| at + 1);
        return Err(LayoutProblem::Descending { at });
    }
    if last.as_usize() > limit {
        let at = offsets.partition_point(|offset| offset.as_usize() <= limit);
        return Err(LayoutProblem::OutOfRange { what: "offset", at });
    }
    Ok((first.as_usize(), last.as_usize()))
}

/// Checks that strings are UTF-8. [`offsets`] must have checked the offsets before.
pub(super) fn strings<O: OffsetSizeTrait>(offsets: &[O], values: &[u8]) -> Result<(), LayoutProblem> {
    let (Some(first), Some(last)) = (offsets.first(), offsets.last()) else { return Ok(()) };
    let used = &values[first.as_usize()..last.as_usize()];
    if is_ascii(used) {
        return Ok(());
    }
    let whole = is_utf8(used);
    let splits = |at: usize| values.get(at).is_some_and(|byte| !begins(*byte));
    // The first and the last offset are the ends of bytes that are valid as a whole, so only those between need a
    // check.
    let between = offsets.get(1..offsets.len() - 1).unwrap_or_default();
    if whole && !between.iter().fold(false, |split, at| split | splits(at.as_usize())) {
        return Ok(());
    }
    let is_string = |pair: &[O]| std::str::from_utf8(&values[pair[0].as_usize()..pair[1].as_usize()]).is_ok();
    match offsets.windows(2).position(|pair| !is_string(pair)) {
        None => Ok(()),
        Some(at) => Err(LayoutProblem::NotUtf8 { at }),
    }
}

/// Whether all bytes are ASCII. The standard library's check is several times slower on processors without AVX.
fn is_ascii(bytes: &[u8]) -> bool {
    /// Number of bytes between two looks at the result. They fit the first-level cache.
    const BLOCK: usize = 4096;
    bytes.chunks(BLOCK).all(|block| {
        let (vectors, rest) = block.as_chunks::<64>();
        let mut any = [0; 64];
        for vector in vectors {
            for (any, byte) in any.iter_mut().zip(vector) {
                *any |= byte;
            }
        }
        any.iter().chain(rest).fold(0, |any, byte| any | byte) < 0x80
    })
}

/// Whether bytes are UTF-8, for whole buffers. simdutf8's basic check does not return the position of an error, which
/// is not needed here.
fn is_utf8(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
}

/// Whether a character can begin with this byte, within bytes that are valid UTF-8.
fn begins(byte: u8) -> bool {
    byte & 0xc0 != 0x80
}

/// Checks that no key exceeds the number of values. Keys of nulls may have any value.
pub(super) fn keys<K: ArrowNativeType>(
    keys: &[K],
    nulls: Option<&NullBuffer>,
    is_beyond: impl Fn(K) -> bool,
) -> Result<(), LayoutProblem> {
    if !keys.iter().fold(false, |any, key| any | is_beyond(*key)) {
        return Ok(());
    }
    let is_null = |at: usize| nulls.is_some_and(|nulls| nulls.is_null(at));
    match keys.iter().enumerate().position(|(at, key)| is_beyond(*key) && !is_null(at)) {
        None => Ok(()),
        Some(at) => Err(LayoutProblem::OutOfRange { what: "key", at }),
    }
}

/// The result of the UTF-8 check of a data buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Text {
    /// Every part of it is valid: it is ASCII, or the array is of binary.
    Any,
    /// Every part of it that begins and ends at character boundaries is valid.
    Whole,
    /// Each part must be validated by itself.
    Unknown,
}

impl Text {
    fn of(bytes: &[u8]) -> Self {
        match bytes {
            bytes if is_ascii(bytes) => Text::Any,
            bytes if is_utf8(bytes) => Text::Whole,
            _ => Text::Unknown,
        }
    }

    fn has_string(self, bytes: &[u8], start: usize, string: &[u8]) -> bool {
        match self {
            Text::Any => true,
            Text::Whole => {
                string.first().is_none_or(|byte| begins(*byte))
                    && bytes.get(start + string.len()).is_none_or(|byte| begins(*byte))
            }
            Text::Unknown => std::str::from_utf8(string).is_ok(),
        }
    }
}

/// For each length of a string within its view: the bits of the length and the string. The other bits must be 0.
const USED: [u128; MAX_INLINE_VIEW_LEN as usize + 1] = {
    let mut used = [u128::MAX; MAX_INLINE_VIEW_LEN as usize + 1];
    let mut len = 0;
    while len < MAX_INLINE_VIEW_LEN as usize {
        used[len] = (1 << (32 + 8 * len)) - 1;
        len += 1;
    }
    used
};

/// For a view that contains its string: the highest bit of each byte of the string, which is 0 in ASCII.
const NOT_ASCII: u128 =
    u128::from_be_bytes([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0, 0, 0, 0]);

/// Checks that the strings of views lie within the views or within the data, begin with the prefixes in the views, and
/// are UTF-8 if required.
pub(super) fn views(views: &[[u8; 16]], data: &[Buffer], utf8: bool) -> Result<(), LayoutProblem> {
    let text = |bytes: &[u8]| if utf8 { Text::of(bytes) } else { Text::Any };
    let data: Vec<(&[u8], Text)> = data.iter().map(|buffer| (buffer.as_slice(), text(buffer))).collect();
    let not_ascii = if utf8 { NOT_ASCII } else { 0 };
    let (mut strays, mut letters) = (0, false);
    for bytes in views {
        let view = u128::from_le_bytes(*bytes);
        if let Some(used) = USED.get(view as u32 as usize) {
            strays |= view & !used;
            letters |= view & not_ascii != 0;
        } else if !is_long_valid(view, &data) {
            strays = 1;
            break;
        }
    }
    if strays == 0 && !letters {
        return Ok(());
    }
    match views.iter().enumerate().find_map(|(at, view)| wrong(*view, &data, utf8).map(|why| (at, why))) {
        None => Ok(()),
        Some((at, Wrong::NotUtf8)) => Err(LayoutProblem::NotUtf8 { at }),
        Some((at, Wrong::OutOfRange)) => Err(LayoutProblem::OutOfRange { what: "view", at }),
        Some((at, Wrong::Padding)) => Err(LayoutProblem::View { at, why: "bytes beyond its string are not 0" }),
        Some((at, Wrong::Prefix)) => Err(LayoutProblem::View { at, why: "its string begins with other bytes" }),
    }
}

fn is_long_valid(view: u128, data: &[(&[u8], Text)]) -> bool {
    let view = ByteView::from(view);
    let (start, len) = (view.offset as usize, view.length as usize);
    let Some(&(bytes, text)) = data.get(view.buffer_index as usize) else { return false };
    let Some(string) = bytes.get(start..start + len) else { return false };
    let begins_so = string.first_chunk::<4>().is_some_and(|first| u32::from_le_bytes(*first) == view.prefix);
    begins_so && (text == Text::Any || text.has_string(bytes, start, string))
}

enum Wrong {
    Padding,
    OutOfRange,
    Prefix,
    NotUtf8,
}

/// The error of a view, if there is one.
fn wrong(bytes: [u8; 16], data: &[(&[u8], Text)], utf8: bool) -> Option<Wrong> {
    let view = u128::from_le_bytes(bytes);
    let len = view as u32 as usize;
    if let Some(used) = USED.get(len) {
        return match view & !used {
            0 if !utf8 || std::str::from_utf8(&bytes[4..4 + len]).is_ok() => None,
            0 => Some(Wrong::NotUtf8),
            _ => Some(Wrong::Padding),
        };
    }
    let view = ByteView::from(view);
    let start = view.offset as usize;
    let Some(&(bytes, text)) = data.get(view.buffer_index as usize) else { return Some(Wrong::OutOfRange) };
    match bytes.get(start..start + len) {
        None => Some(Wrong::OutOfRange),
        Some(string) if !string.starts_with(&view.prefix.to_le_bytes()) => Some(Wrong::Prefix),
        Some(string) if !text.has_string(bytes, start, string) => Some(Wrong::NotUtf8),
        Some(_) => None,
    }
}
