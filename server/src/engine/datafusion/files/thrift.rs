//! Reads Thrift's compact protocol, as far as the checks of Parquet files need it.
//!
//! Neither a count nor a depth can cost more than the bytes that are there: the reader of `parquet` skips a map of two
//! thousand million booleans, which take no bytes, one by one.
//! <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>

/// Deepest nesting of what is skipped. `parquet` skips as deep.
const MAX_DEPTH: usize = 64;

/// A kind of a field or an element, by its number in the protocol.
pub(super) mod kind {
    pub(in super::super) const I32: u8 = 5;
    pub(in super::super) const I64: u8 = 6;
    pub(in super::super) const LIST: u8 = 9;
    pub(in super::super) const STRUCT: u8 = 12;
}

/// The bytes are not of the protocol, or are nested too deep.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

pub(super) struct Compact<'a> {
    rest: &'a [u8],
}

impl<'a> Compact<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Compact { rest: bytes }
    }

    /// The bytes that are not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    /// A number of 16, 32 or 64 bits.
    pub(super) fn integer(&mut self) -> Result<i64, Malformed> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// Number and kind of the next field of a struct; `None` at its end. `last` is the number of the field before, 0 at
    /// the start.
    pub(super) fn field(&mut self, last: &mut i64) -> Result<Option<(i64, u8)>, Malformed> {
        let head = self.byte()?;
        if head == 0 {
            return Ok(None);
        }
        *last = match head >> 4 {
            0 => self.integer()?,
            delta => last.checked_add(i64::from(delta)).ok_or(Malformed)?,
        };
        Ok(Some((*last, head & 0x0f)))
    }

    /// Number and kind of the elements of a list. Each takes a byte at least.
    pub(super) fn list(&mut self) -> Result<(usize, u8), Malformed> {
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.count()?,
            short => usize::from(short),
        };
        if count > self.rest.len() { Err(Malformed) } else { Ok((count, head & 0x0f)) }
    }

    fn count(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.varint()?).ok().filter(|count| *count <= self.rest.len()).ok_or(Malformed)
    }

    /// Skips the value of a field of this kind.
    pub(super) fn skip(&mut self, kind: u8) -> Result<(), Malformed> {
        self.skip_within(kind, false, MAX_DEPTH)
    }

    fn skip_within(&mut self, kind: u8, is_element: bool, depth: usize) -> Result<(), Malformed> {
        let depth = depth.checked_sub(1).ok_or(Malformed)?;
        match kind {
            // The value of a field is its kind.
            1 | 2 if !is_element => {}
            1..=3 => {
                self.byte()?;
            }
            4..=6 => {
                self.varint()?;
            }
            7 => {
                self.take(8)?;
            }
            8 => {
                let count = self.count()?;
                self.take(count)?;
            }
            9 | 10 => {
                let (count, kind) = self.list()?;
                for _ in 0..count {
                    self.skip_within(kind, true, depth)?;
                }
            }
            11 => self.skip_map(depth)?,
            12 => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip_within(kind, false, depth)?;
                }
            }
            13 => {
                self.take(16)?;
            }
            _ => return Err(Malformed),
        }
        Ok(())
    }

    fn skip_map(&mut self, depth: usize) -> Result<(), Malformed> {
        let count = self.count()?;
        if count == 0 {
            return Ok(());
        }
        let kinds = self.byte()?;
        for _ in 0..count {
            self.skip_within(kinds >> 4, true, depth)?;
            self.skip_within(kinds & 0x0f, true, depth)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(kind: u8, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut reader = Compact::new(bytes);
        reader.skip(kind).map(|()| reader.rest().len())
    }

    #[test]
    fn values_are_skipped_to_their_end() {
        assert_eq!(skipped(1, &[9]), Ok(1));
        assert_eq!(skipped(5, &[0x80, 0x01, 9]), Ok(1));
        assert_eq!(skipped(8, &[2, b'a', b'b', 9]), Ok(1));
        assert_eq!(skipped(9, &[0x25, 2, 4, 9]), Ok(1));
        assert_eq!(skipped(9, &[0x21, 1, 2, 9]), Ok(1));
        assert_eq!(skipped(11, &[1, 0x58, 2, 1, b'x', 9]), Ok(1));
        assert_eq!(skipped(12, &[0x15, 2, 0x11, 0, 9]), Ok(1));
    }

    #[test]
    fn counts_and_depths_are_bounded_by_the_bytes() {
        assert_eq!(skipped(9, &[0xf1, 0xff, 0xff, 0xff, 0xff, 0x07, 0]), Err(Malformed));
        assert_eq!(skipped(11, &[0xff, 0xff, 0xff, 0xff, 0x07, 0x11]), Err(Malformed));
        assert_eq!(skipped(8, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), Err(Malformed));
        assert_eq!(skipped(12, &[0x1c; 100]), Err(Malformed));
        assert_eq!(skipped(9, &[0x19; 1 << 20]), Err(Malformed));
        assert_eq!(skipped(14, &[0]), Err(Malformed));
        for bytes in [&[][..], &[0x80]] {
            assert_eq!(skipped(5, bytes), Err(Malformed));
        }
    }

    #[test]
    fn integers_and_fields() {
        let mut reader = Compact::new(&[0x15, 0x03, 0x05, 0x28, 0x02, 0]);
        let mut last = 0;
        assert_eq!(reader.field(&mut last), Ok(Some((1, kind::I32))));
        assert_eq!(reader.integer(), Ok(-2));
        assert_eq!(reader.field(&mut last), Ok(Some((20, kind::I32))));
        assert_eq!(reader.integer(), Ok(1));
        assert_eq!(reader.field(&mut last), Ok(None));
    }
}
