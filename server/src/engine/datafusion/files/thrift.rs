//! Reads Thrift's compact protocol, as far as the checks of Parquet files need it.
//!
//! A check has to see the values that the reader of `parquet` sees. That reader ignores the kind of a field that it
//! knows, and takes its bytes for the kind that it expects. A known field with another kind is therefore refused here:
//! after it the two would read different values from the same bytes.
//!
//! Neither a count nor a depth can cost more than the bytes that are there: the reader of `parquet` skips a map of two
//! thousand million booleans, which take no bytes, one by one.
//! <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>

/// Deepest nesting of what is skipped. `parquet` skips as deep.
const MAX_DEPTH: usize = 64;

/// The value that the reader of `parquet` expects of a field or an element.
pub(super) enum Shape {
    Bool,
    Byte,
    I16,
    I32,
    I64,
    Double,
    Binary,
    List(&'static Shape),
    Struct(Fields),
}

/// Numbers and shapes of the known fields of a struct. Other fields are skipped by the kind in the file.
pub(super) type Fields = &'static [(i16, Shape)];

impl Shape {
    /// Returns whether a value with this kind has the shape. The kinds are numbers of the protocol.
    fn is(&self, kind: u8) -> bool {
        match self {
            Shape::Bool => kind == 1 || kind == 2,
            Shape::Byte => kind == 3,
            Shape::I16 => kind == 4,
            Shape::I32 => kind == 5,
            Shape::I64 => kind == 6,
            Shape::Double => kind == 7,
            Shape::Binary => kind == 8,
            Shape::List(_) => kind == 9,
            Shape::Struct(_) => kind == 12,
        }
    }
}

/// Why bytes cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// They end within a value.
    Ended,
    /// They are not of the protocol, are nested too deep, or contradict the known fields.
    Invalid,
}

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
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Malformed::Ended)?;
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
        Err(Malformed::Invalid)
    }

    /// A number of 64 bits.
    pub(super) fn i64(&mut self) -> Result<i64, Malformed> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// A number of 32 bits. The reader of `parquet` drops the bits beyond, and would see another number.
    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        i32::try_from(self.i64()?).map_err(|_| Malformed::Invalid)
    }

    fn i16(&mut self) -> Result<i16, Malformed> {
        i16::try_from(self.i64()?).map_err(|_| Malformed::Invalid)
    }

    /// Number and kind of the next field of a struct; `None` at its end. `last` is the number of the field before, 0 at
    /// the start. As in the reader of `parquet`, the high bits of the last byte of a struct are ignored.
    fn field(&mut self, last: &mut i16) -> Result<Option<(i16, u8)>, Malformed> {
        let head = self.byte()?;
        let kind = head & 0x0f;
        if kind == 0 {
            return Ok(None);
        }
        *last = match head >> 4 {
            0 => self.i16()?,
            delta => last.checked_add(i16::from(delta)).ok_or(Malformed::Invalid)?,
        };
        Ok(Some((*last, kind)))
    }

    /// Reads a struct with the known `fields`. `read` reads the value of a known field and says `true`, or says `false`
    /// without having read anything, and then the value is passed over.
    pub(super) fn read_struct<E: From<Malformed>>(
        &mut self,
        fields: Fields,
        mut read: impl FnMut(&mut Self, i16) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut last = 0;
        while let Some((number, kind)) = self.field(&mut last)? {
            match fields.iter().find(|(known, _)| *known == number) {
                None => self.skip(kind, MAX_DEPTH)?,
                Some((_, shape)) if !shape.is(kind) => return Err(Malformed::Invalid.into()),
                Some((_, shape)) => {
                    if !read(self, number)? {
                        self.value(shape)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads a struct, and returns its field `wanted`, a number of 32 bits; 0 if the struct lacks it.
    pub(super) fn i32_of_struct(&mut self, fields: Fields, wanted: i16) -> Result<i32, Malformed> {
        let mut found = 0;
        self.read_struct(fields, |reader, number| {
            if number != wanted {
                return Ok(false);
            }
            found = reader.i32()?;
            Ok::<_, Malformed>(true)
        })?;
        Ok(found)
    }

    /// Number of the elements of a list, each of which has a shape, and takes a byte at least.
    pub(super) fn list(&mut self, shape: &Shape) -> Result<usize, Malformed> {
        let (count, kind) = self.list_head()?;
        if count == 0 || shape.is(kind) { Ok(count) } else { Err(Malformed::Invalid) }
    }

    fn list_head(&mut self) -> Result<(usize, u8), Malformed> {
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.count()?,
            short => usize::from(short),
        };
        if count > self.rest.len() { Err(Malformed::Invalid) } else { Ok((count, head & 0x0f)) }
    }

    fn count(&mut self) -> Result<usize, Malformed> {
        let count = usize::try_from(self.varint()?).ok();
        count.filter(|count| *count <= self.rest.len()).ok_or(Malformed::Invalid)
    }

    /// Passes over the value of a known field. The nesting of shapes bounds the depth.
    pub(super) fn value(&mut self, shape: &Shape) -> Result<(), Malformed> {
        match shape {
            // The value of a field is its kind.
            Shape::Bool => Ok(()),
            Shape::Byte => self.byte().map(|_| ()),
            Shape::I16 => self.i16().map(|_| ()),
            Shape::I32 => self.i32().map(|_| ()),
            Shape::I64 => self.i64().map(|_| ()),
            Shape::Double => self.take(8).map(|_| ()),
            Shape::Binary => self.count().and_then(|count| self.take(count)).map(|_| ()),
            Shape::Struct(fields) => self.read_struct(fields, |_, _| Ok(false)),
            Shape::List(shape) => {
                let count = self.list(shape)?;
                (0..count).try_for_each(|_| match shape {
                    // As an element it is a byte.
                    Shape::Bool => self.byte().map(|_| ()),
                    shape => self.value(shape),
                })
            }
        }
    }

    /// Skips the value of a field that is not known.
    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), Malformed> {
        let depth = depth.checked_sub(1).ok_or(Malformed::Invalid)?;
        match kind {
            1 | 2 => Ok(()),
            3 => self.byte().map(|_| ()),
            4..=6 => self.varint().map(|_| ()),
            7 => self.take(8).map(|_| ()),
            8 => self.count().and_then(|count| self.take(count)).map(|_| ()),
            9 | 10 => {
                let (count, kind) = self.list_head()?;
                (0..count).try_for_each(|_| self.skip_element(kind, depth))
            }
            11 => self.skip_map(depth),
            12 => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth)?;
                }
                Ok(())
            }
            13 => self.take(16).map(|_| ()),
            _ => Err(Malformed::Invalid),
        }
    }

    /// Skips an element that is not known. The protocol has a byte for a boolean, the reader of `parquet` skips none:
    /// no reading of it is safe.
    fn skip_element(&mut self, kind: u8, depth: usize) -> Result<(), Malformed> {
        match kind {
            1 | 2 => Err(Malformed::Invalid),
            _ => self.skip(kind, depth),
        }
    }

    fn skip_map(&mut self, depth: usize) -> Result<(), Malformed> {
        let count = self.count()?;
        if count == 0 {
            return Ok(());
        }
        let kinds = self.byte()?;
        (0..count).try_for_each(|_| {
            self.skip_element(kinds >> 4, depth)?;
            self.skip_element(kinds & 0x0f, depth)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(kind: u8, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut reader = Compact::new(bytes);
        reader.skip(kind, MAX_DEPTH).map(|()| reader.rest().len())
    }

    fn passed(shape: &Shape, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut reader = Compact::new(bytes);
        reader.value(shape).map(|()| reader.rest().len())
    }

    #[test]
    fn values_are_skipped_to_their_end() {
        assert_eq!(skipped(1, &[9]), Ok(1));
        assert_eq!(skipped(5, &[0x80, 0x01, 9]), Ok(1));
        assert_eq!(skipped(8, &[2, b'a', b'b', 9]), Ok(1));
        assert_eq!(skipped(9, &[0x25, 2, 4, 9]), Ok(1));
        assert_eq!(skipped(9, &[0x00, 9]), Ok(1));
        assert_eq!(skipped(11, &[1, 0x58, 2, 1, b'x', 9]), Ok(1));
        assert_eq!(skipped(12, &[0x15, 2, 0x11, 0, 9]), Ok(1));
        assert_eq!(skipped(12, &[0x15, 2, 0xf0, 9]), Ok(1));
    }

    #[test]
    fn booleans_in_an_unknown_list_or_map_are_refused() {
        for (kind, bytes) in [(9, [0x11, 1]), (9, [0x12, 1]), (10, [0x11, 1])] {
            assert_eq!(skipped(kind, &bytes), Err(Malformed::Invalid));
        }
        for kinds in [0x11, 0x22, 0x15, 0x51] {
            assert_eq!(skipped(11, &[1, kinds, 1, 1]), Err(Malformed::Invalid));
        }
        assert_eq!(passed(&Shape::List(&Shape::Bool), &[0x21, 1, 2, 9]), Ok(1));
    }

    #[test]
    fn counts_and_depths_are_bounded_by_the_bytes() {
        assert_eq!(skipped(9, &[0xf5, 0xff, 0xff, 0xff, 0xff, 0x07, 0]), Err(Malformed::Invalid));
        assert_eq!(skipped(11, &[0xff, 0xff, 0xff, 0xff, 0x07, 0x55]), Err(Malformed::Invalid));
        assert_eq!(skipped(8, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), Err(Malformed::Invalid));
        assert_eq!(skipped(12, &[0x1c; 100]), Err(Malformed::Invalid));
        assert_eq!(skipped(9, &[0x19; 1 << 20]), Err(Malformed::Invalid));
        assert_eq!(skipped(14, &[0]), Err(Malformed::Invalid));
        for bytes in [&[][..], &[0x80]] {
            assert_eq!(skipped(5, bytes), Err(Malformed::Ended));
        }
    }

    #[test]
    fn fields_have_numbers_and_kinds() {
        let mut reader = Compact::new(&[0x15, 0x03, 0x05, 0x28, 0x02, 0]);
        let mut last = 0;
        assert_eq!(reader.field(&mut last), Ok(Some((1, 5))));
        assert_eq!(reader.i64(), Ok(-2));
        assert_eq!(reader.field(&mut last), Ok(Some((20, 5))));
        assert_eq!(reader.i32(), Ok(1));
        assert_eq!(reader.field(&mut last), Ok(None));
        // The number 65541, of which the reader of `parquet` keeps the low 16 bits.
        assert_eq!(Compact::new(&[0x05, 0x8a, 0x80, 0x08, 2]).field(&mut 0), Err(Malformed::Invalid));
        assert_eq!(Compact::new(&[0xf5]).field(&mut (i16::MAX - 1)), Err(Malformed::Invalid));
    }

    #[test]
    fn known_fields_have_their_kind() {
        const FIELDS: Shape = Shape::Struct(&[(1, Shape::I32), (2, Shape::List(&Shape::I32)), (3, Shape::Bool)]);
        assert_eq!(passed(&FIELDS, &[0x15, 2, 0x19, 0x15, 4, 0x12, 0x15, 2, 0, 9]), Ok(1));
        for kind in (1..16).filter(|kind| *kind != 5) {
            assert_eq!(passed(&FIELDS, &[0x10 | kind, 0, 0, 0]), Err(Malformed::Invalid), "{kind}");
        }
        // A set for a list, another kind of elements, and a number of 2^32 for one of 32 bits.
        for bytes in [&[0x2a, 0x15, 4, 0][..], &[0x29, 0x16, 4, 0], &[0x15, 0x80, 0x80, 0x80, 0x80, 0x20, 0]] {
            assert_eq!(passed(&FIELDS, bytes), Err(Malformed::Invalid));
        }
    }
}
