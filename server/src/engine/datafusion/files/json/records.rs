//! Finds the records of a file of JSON.

use std::io::Read;

use super::super::error::ReadError;
use super::lexer::Lexer;

/// Where the records of a file are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Unknown,
    /// One after the other.
    Stream,
    /// The elements of an array.
    Array,
    End,
}

/// Finds the records, objects, of a file.
pub(super) struct Records {
    pub(super) lexer: Lexer,
    layout: Layout,
    /// Whether each record has to be a line of its own.
    is_part: bool,
    /// Line of the last record, and where it ended.
    first_line: u64,
    last_line: u64,
    /// Whether each record so far was a line of its own.
    pub(super) is_lines: bool,
}

impl Records {
    pub(super) fn new(input: Box<dyn Read + Send>, is_part: bool) -> Self {
        let lexer = Lexer::new(input);
        Records { lexer, layout: Layout::Unknown, is_part, first_line: 0, last_line: 0, is_lines: true }
    }

    /// Goes to the next record's brace, and tells whether there is one.
    pub(super) fn next(&mut self) -> Result<bool, ReadError> {
        self.lexer.begin_record();
        if self.layout == Layout::Unknown && self.lexer.peek()? == Some(b'[') && !self.is_part {
            self.lexer.take();
            (self.layout, self.is_lines) = (Layout::Array, false);
            if !self.lexer.has_next(b']', true)? {
                return self.end_of_array();
            }
        } else if self.layout == Layout::Array && !self.lexer.has_next(b']', false)? {
            return self.end_of_array();
        } else if self.layout == Layout::Unknown {
            self.layout = Layout::Stream;
        }
        if self.layout == Layout::End {
            return Ok(false);
        }
        match self.lexer.peek()? {
            None if self.layout == Layout::Array => Err(self.lexer.flaw("the file ends within an array")),
            None => Ok(false),
            Some(b'{') => {
                self.first_line = self.lexer.line();
                self.is_lines &= self.first_line > self.last_line;
                Ok(true)
            }
            Some(byte) => {
                let what = if byte == b'[' { "an array" } else { "a value" };
                Err(self
                    .lexer
                    .flaw(format!("{what} that is no object: each record is an object, {{\"column\": value}}")))
            }
        }
    }

    /// To be called behind a record.
    pub(super) fn end(&mut self) -> Result<(), ReadError> {
        self.last_line = self.lexer.line();
        self.is_lines &= self.last_line == self.first_line;
        if self.is_part && !self.is_lines {
            let reason = "the file has changed since it was inspected: its records are not one a line";
            return Err(ReadError::at_line(self.first_line, reason));
        }
        Ok(())
    }

    fn end_of_array(&mut self) -> Result<bool, ReadError> {
        self.layout = Layout::End;
        match self.lexer.peek()? {
            None => Ok(false),
            Some(_) => Err(self.lexer.flaw("text after the array of records")),
        }
    }
}
