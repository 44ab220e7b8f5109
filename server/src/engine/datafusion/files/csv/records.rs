//! Records of CSV, with what the crates for it do not tell: whether a field was quoted, and the line of a record.

use super::super::error::ReadError;

const MAX_SPARE: usize = 32 << 20;

/// Fields of records, in row order.
#[derive(Default)]
pub(super) struct Records {
    data: Vec<u8>,
    /// End of each field in `data`.
    ends: Vec<usize>,
    quoted: Vec<bool>,
    /// First line of each record.
    lines: Vec<u64>,
}

impl Records {
    pub(super) fn clear(&mut self) {
        // The memory that a very long field took is given back.
        if self.data.capacity() > MAX_SPARE {
            self.data = Vec::new();
        }
        self.data.clear();
        self.ends.clear();
        self.quoted.clear();
        self.lines.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Bytes of the fields.
    pub(super) fn size(&self) -> usize {
        self.data.len()
    }

    /// The fields as text, `width` a record; `name` names a field for an error.
    pub(super) fn rows<'a>(&'a self, width: usize, name: impl Fn(usize) -> String) -> Result<Rows<'a>, ReadError> {
        let invalid = |cell: usize| {
            let (row, column) = (cell.checked_div(width).unwrap_or(0), cell.checked_rem(width).unwrap_or(0));
            ReadError::Invalid {
                line: self.lines.get(row).copied(),
                reason: format!("{}: the text is not UTF-8", name(column)),
            }
        };
        let text = std::str::from_utf8(&self.data)
            .map_err(|error| invalid(self.ends.partition_point(|end| *end <= error.valid_up_to())))?;
        // A letter's first byte may end one field and the others begin the next.
        match self.ends.iter().position(|end| !text.is_char_boundary(*end)) {
            Some(cell) => Err(invalid(cell)),
            None => Ok(Rows { records: self, text, width }),
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
    }

    pub(super) fn end_field(&mut self, quoted: bool) {
        self.ends.push(self.data.len());
        self.quoted.push(quoted);
    }

    pub(super) fn end_record(&mut self, line: u64) {
        self.lines.push(line);
    }
}

/// A field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) text: &'a str,
    pub(super) quoted: bool,
}

/// Records as text.
pub(super) struct Rows<'a> {
    records: &'a Records,
    text: &'a str,
    width: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn line(&self, row: usize) -> Option<u64> {
        self.records.lines.get(row).copied()
    }

    /// Field `column` of every record.
    pub(super) fn column(&self, column: usize) -> impl Iterator<Item = Field<'a>> + '_ {
        (0..self.len()).map(move |row| self.cell(row * self.width + column))
    }

    /// Fields of the first record.
    pub(super) fn first(&self) -> impl Iterator<Item = Field<'a>> + '_ {
        (0..self.width).map(|cell| self.cell(cell))
    }

    fn cell(&self, cell: usize) -> Field<'a> {
        let end_of = |cell: usize| self.records.ends.get(cell).copied().unwrap_or_default();
        let start = cell.checked_sub(1).map_or(0, end_of);
        // The ends are in order and at boundaries of letters.
        let text = self.text.get(start..end_of(cell)).unwrap_or_default();
        Field { text, quoted: self.records.quoted.get(cell).copied().unwrap_or_default() }
    }
}

/// The fields of a single record.
pub(super) fn texts(records: &Records, width: usize) -> Result<Vec<String>, ReadError> {
    let rows = records.rows(width, |column| format!("column {}", column + 1))?;
    Ok(rows.first().map(|field| field.text.to_owned()).collect())
}

/// A column, as errors name it.
pub(super) fn column_name(names: &[String], column: usize) -> String {
    format!("column {:?}", names.get(column).map_or("", String::as_str))
}
