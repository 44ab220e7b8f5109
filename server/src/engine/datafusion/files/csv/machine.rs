//! The grammar of CSV, by the rules of the crate `csv-core`, but it knows the line where an open quote began.
//!
//! A quote opens a field only as its first byte; within quotes a doubled quote is one. Unlike `csv-core`, text after
//! the closing quote is an error: with it, an open quote ends at the next quoted field, and the rows between are lost.

use super::super::error::ReadError;
use super::super::input::is_new_line;
use super::options::CsvOptions;
use super::records::Records;

/// The longest record. An open quote takes no more memory than this.
pub(super) const MAX_RECORD: u64 = 256 << 20;
const MAX_COLUMNS: usize = 100_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a record.
    Start,
    Comment,
    FieldStart,
    Plain,
    Quoted,
    /// After an escape within quotes.
    Escaped,
    /// After a quote within quotes: the field's end, or the first of a doubled one.
    Closed,
}

pub(super) struct Machine {
    delimiter: u8,
    quote: u8,
    escape: Option<u8>,
    comment: Option<u8>,
    breaks_in_quotes: bool,
    keep: Option<Vec<bool>>,
    /// Bytes that end an unquoted field.
    ends_plain: [bool; 256],
    /// Bytes within quotes that mean more than themselves.
    ends_quoted: [bool; 256],
    state: State,
    /// Line of the next byte.
    line: u64,
    record_line: u64,
    quote_line: u64,
    /// Number of the field in its record.
    field: usize,
    /// Whether the field is kept, and whether it was quoted.
    kept: bool,
    quoted: bool,
    saw_break: bool,
    /// The byte before those at hand.
    last: u8,
}

impl Machine {
    pub(super) fn new(options: &CsvOptions, breaks_in_quotes: bool) -> Self {
        let table = |bytes: &[u8]| {
            let mut table = [false; 256];
            for byte in [b'\r', b'\n'].iter().chain(bytes) {
                table[usize::from(*byte)] = true;
            }
            table
        };
        Machine {
            delimiter: options.delimiter,
            quote: options.quote,
            escape: options.escape,
            comment: options.comment,
            breaks_in_quotes,
            keep: None,
            ends_plain: table(&[options.delimiter]),
            ends_quoted: table(&[options.quote, options.escape.unwrap_or(options.quote)]),
            state: State::Start,
            line: 1,
            record_line: 1,
            quote_line: 1,
            field: 0,
            kept: true,
            quoted: false,
            saw_break: false,
            last: 0,
        }
    }

    /// From now on a record has `keep.len()` fields, of which those marked are kept.
    pub(super) fn keep(&mut self, keep: Vec<bool>) {
        self.keep = Some(keep);
    }

    pub(super) fn saw_break_in_quotes(&self) -> bool {
        self.saw_break
    }

    /// Number of fields of the record that ended last.
    pub(super) fn width(&self) -> usize {
        self.field
    }

    pub(super) fn is_between(&self) -> bool {
        matches!(self.state, State::Start | State::Comment)
    }

    /// Takes bytes up to the end of a record. The number of bytes taken, and whether a record ended.
    pub(super) fn run(&mut self, bytes: &[u8], records: &mut Records) -> Result<(usize, bool), ReadError> {
        let mut at = 0;
        let mut is_record = false;
        while !is_record && at < bytes.len() {
            let before = at.checked_sub(1).map_or(self.last, |at| bytes[at]);
            let rest = &bytes[at..];
            let byte = rest[0];
            match self.state {
                State::Start | State::Comment => at += self.between(byte, before),
                State::FieldStart if byte == self.quote => {
                    (self.state, self.quoted, self.quote_line) = (State::Quoted, true, self.line);
                    at += 1;
                }
                State::FieldStart => self.state = State::Plain,
                State::Plain => {
                    let count = self.copy(rest, &self.ends_plain, records);
                    at += count;
                    if let Some(&byte) = bytes.get(at) {
                        is_record = self.end_field(byte, records)?;
                        at += 1;
                    }
                }
                State::Quoted => {
                    let count = self.copy(rest, &self.ends_quoted, records);
                    if let Some(&byte) = rest.get(count) {
                        let before = if count > 0 { rest[count - 1] } else { before };
                        self.within_quotes(byte, before, records)?;
                        at += 1;
                    }
                    at += count;
                }
                State::Escaped => {
                    self.state = State::Quoted;
                    self.literal(byte, before, records)?;
                    at += 1;
                }
                State::Closed if byte == self.quote => {
                    self.state = State::Quoted;
                    self.push(&[byte], records);
                    at += 1;
                }
                State::Closed if self.ends_plain[usize::from(byte)] => {
                    is_record = self.end_field(byte, records)?;
                    at += 1;
                }
                State::Closed => return Err(self.text_after_quote()),
            }
        }
        if let Some(&last) = at.checked_sub(1).and_then(|at| bytes.get(at)) {
            self.last = last;
        }
        Ok((at, is_record))
    }

    /// A byte between records: blank lines and comments are skipped. The number of bytes taken.
    fn between(&mut self, byte: u8, before: u8) -> usize {
        if matches!(byte, b'\r' | b'\n') {
            self.line += u64::from(is_new_line(byte, before));
            self.state = State::Start;
        } else if self.state == State::Start {
            if self.comment == Some(byte) {
                self.state = State::Comment;
            } else {
                self.record_line = self.line;
                self.field = 0;
                self.begin_field();
                return 0;
            }
        }
        1
    }

    fn begin_field(&mut self) {
        self.state = State::FieldStart;
        self.quoted = false;
        self.kept = self.keep.as_ref().is_none_or(|keep| keep.get(self.field) == Some(&true));
    }

    /// Copies the bytes before the first of `stops`; returns their number.
    fn copy(&self, bytes: &[u8], stops: &[bool; 256], records: &mut Records) -> usize {
        let count = bytes.iter().position(|byte| stops[usize::from(*byte)]).unwrap_or(bytes.len());
        self.push(&bytes[..count], records);
        count
    }

    fn push(&self, bytes: &[u8], records: &mut Records) {
        if self.kept {
            records.push(bytes);
        }
    }

    fn within_quotes(&mut self, byte: u8, before: u8, records: &mut Records) -> Result<(), ReadError> {
        if byte == self.quote {
            self.state = State::Closed;
        } else if self.escape == Some(byte) {
            self.state = State::Escaped;
        } else {
            self.literal(byte, before, records)?;
        }
        Ok(())
    }

    /// A byte within quotes that stands for itself.
    fn literal(&mut self, byte: u8, before: u8, records: &mut Records) -> Result<(), ReadError> {
        if matches!(byte, b'\r' | b'\n') {
            self.saw_break = true;
            self.line += u64::from(is_new_line(byte, before));
            if !self.breaks_in_quotes {
                let reason = "a line ends within the quotes opened here: an open quote, or a text of several lines, \
                              which a file that is read in parts cannot have (quoted_newlines = true)";
                return Err(ReadError::at_line(self.quote_line, reason));
            }
        }
        self.push(&[byte], records);
        Ok(())
    }

    /// Ends the field at a delimiter or line break; whether the record ends as well.
    fn end_field(&mut self, byte: u8, records: &mut Records) -> Result<bool, ReadError> {
        if self.kept {
            records.end_field(self.quoted);
        }
        self.field += 1;
        if byte == self.delimiter {
            if self.keep.is_none() && self.field >= MAX_COLUMNS {
                let reason = format!("more than {MAX_COLUMNS} columns");
                return Err(ReadError::at_line(self.record_line, reason));
            }
            self.begin_field();
            return Ok(false);
        }
        // The byte that ended the field follows another one of the record, so the break is a new one.
        self.line += 1;
        self.end_record(records)?;
        Ok(true)
    }

    fn end_record(&mut self, records: &mut Records) -> Result<(), ReadError> {
        self.state = State::Start;
        if let Some(keep) = self.keep.as_ref().filter(|keep| keep.len() != self.field) {
            let reason = format!("{} fields, but {} columns", self.field, keep.len());
            return Err(ReadError::at_line(self.record_line, reason));
        }
        records.end_record(self.record_line);
        Ok(())
    }

    pub(super) fn end_of_file(&mut self, records: &mut Records) -> Result<bool, ReadError> {
        match self.state {
            State::Start | State::Comment => Ok(false),
            State::Quoted | State::Escaped => {
                Err(ReadError::at_line(self.quote_line, "the quote opened here is not closed up to the file's end"))
            }
            State::FieldStart | State::Plain | State::Closed => self.end_field(b'\n', records),
        }
    }

    fn text_after_quote(&self) -> ReadError {
        let mut reason =
            "text follows the closing quote of the field that begins here: an open quote before, or quotes \
                          within a text that are not doubled"
                .to_owned();
        if self.escape.is_none() {
            reason.push_str(" (set the table's escape if they are escaped by another character)");
        }
        ReadError::at_line(self.quote_line, reason)
    }

    pub(super) fn too_long(&self) -> ReadError {
        let mebibytes = MAX_RECORD >> 20;
        match self.state {
            State::Quoted | State::Escaped | State::Closed => ReadError::at_line(
                self.quote_line,
                format!("the quote opened here is not closed within {mebibytes} MiB"),
            ),
            _ => ReadError::at_line(self.record_line, format!("a record of more than {mebibytes} MiB")),
        }
    }
}
