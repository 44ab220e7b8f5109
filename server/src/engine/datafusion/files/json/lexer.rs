//! The tokens of JSON (RFC 8259), from a stream. Numbers stay text, so that none is rounded.

use std::io::Read;

use super::super::error::ReadError;
use super::super::input;

const BUFFER: usize = 64 * 1024;
/// The longest record.
const MAX_RECORD: u64 = 256 << 20;
const MAX_NUMBER: usize = 1000;
/// Levels of arrays and objects.
const MAX_DEPTH: usize = 100;

pub(super) struct Lexer {
    input: Box<dyn Read + Send>,
    buffer: Vec<u8>,
    at: usize,
    filled: usize,
    /// Bytes before the buffer.
    before: u64,
    /// First byte of the record.
    record: u64,
    line: u64,
    /// The last byte of space, for line breaks of two bytes.
    space: u8,
    /// The last string, key or number.
    text: String,
}

impl Lexer {
    pub(super) fn new(input: Box<dyn Read + Send>) -> Self {
        Lexer {
            input,
            buffer: vec![0; BUFFER],
            at: 0,
            filled: 0,
            before: 0,
            record: 0,
            line: 1,
            space: 0,
            text: String::new(),
        }
    }

    pub(super) fn line(&self) -> u64 {
        self.line
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> u64 {
        self.before + self.at as u64
    }

    pub(super) fn begin_record(&mut self) {
        self.record = self.offset();
    }

    pub(super) fn flaw(&self, reason: impl Into<String>) -> ReadError {
        ReadError::at_line(self.line, reason)
    }

    /// The next byte, without taking it.
    fn peek_byte(&mut self) -> Result<Option<u8>, ReadError> {
        if self.at >= self.filled {
            self.fill()?;
        }
        Ok(self.buffer.get(..self.filled).and_then(|bytes| bytes.get(self.at)).copied())
    }

    fn fill(&mut self) -> Result<(), ReadError> {
        self.before += self.filled as u64;
        (self.at, self.filled) = (0, 0);
        if self.before.saturating_sub(self.record) > MAX_RECORD {
            return Err(self.flaw(format!("a record of more than {} MiB", MAX_RECORD >> 20)));
        }
        loop {
            match self.input.read(&mut self.buffer) {
                Ok(count) => {
                    self.filled = count;
                    return Ok(());
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The first byte of the next token, without taking it; `None` at the end of the file.
    pub(super) fn peek(&mut self) -> Result<Option<u8>, ReadError> {
        loop {
            let byte = self.peek_byte()?;
            match byte {
                Some(byte @ (b' ' | b'\t' | b'\r' | b'\n')) => {
                    self.line += u64::from(input::is_new_line(byte, self.space));
                    self.space = byte;
                    self.at += 1;
                }
                _ => {
                    self.space = 0;
                    return Ok(byte);
                }
            }
        }
    }

    /// As [`Self::peek`], within a record.
    pub(super) fn peek_token(&mut self) -> Result<u8, ReadError> {
        match self.peek()? {
            Some(byte) => Ok(byte),
            None => Err(self.flaw("the file ends within a record")),
        }
    }

    /// Takes the byte that was peeked.
    pub(super) fn take(&mut self) {
        self.at += 1;
    }

    /// Takes the next token, which has to be `byte`.
    pub(super) fn expect(&mut self, byte: u8) -> Result<(), ReadError> {
        let found = self.peek_token()?;
        if found != byte {
            return Err(self.flaw(format!("{:?} instead of {:?}", char::from(found), char::from(byte))));
        }
        self.take();
        Ok(())
    }

    /// Whether another element follows in an array or object that ends with `close`. `is_first`: before the first.
    pub(super) fn has_next(&mut self, close: u8, is_first: bool) -> Result<bool, ReadError> {
        let byte = self.peek_token()?;
        if byte == close {
            self.take();
            return Ok(false);
        }
        if !is_first {
            if byte != b',' {
                return Err(self.flaw(format!("{:?} instead of a comma or {:?}", char::from(byte), char::from(close))));
            }
            self.take();
        }
        Ok(true)
    }

    /// The key of an object's next field, and the colon.
    pub(super) fn key(&mut self) -> Result<(), ReadError> {
        self.string()?;
        self.expect(b':')
    }

    /// `true`, `false` or `null`.
    pub(super) fn word(&mut self, word: &str) -> Result<(), ReadError> {
        for byte in word.bytes() {
            if self.peek_byte()? != Some(byte) {
                return Err(self.flaw(format!("a value that begins as {word:?} does, but is another")));
            }
            self.take();
        }
        Ok(())
    }

    pub(super) fn number(&mut self) -> Result<(), ReadError> {
        self.text.clear();
        while let Some(byte @ (b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')) = self.peek_byte()? {
            self.text.push(char::from(byte));
            self.take();
            if self.text.len() > MAX_NUMBER {
                return Err(self.flaw(format!("a number of more than {MAX_NUMBER} digits")));
            }
        }
        if let (true, Some(byte)) = (self.text.is_empty(), self.peek_byte()?) {
            return Err(self.flaw(format!("{:?} begins no value of JSON", char::from(byte))));
        }
        if is_number(&self.text) { Ok(()) } else { Err(self.flaw(format!("{:?} is not a number of JSON", self.text))) }
    }

    /// A string, its escapes resolved.
    pub(super) fn string(&mut self) -> Result<(), ReadError> {
        self.expect(b'"')?;
        let mut bytes = std::mem::take(&mut self.text).into_bytes();
        bytes.clear();
        loop {
            let Some(byte) = self.peek_byte()? else { return Err(self.flaw("the file ends within a string")) };
            match byte {
                b'"' => break,
                b'\\' => {
                    self.take();
                    let escaped = self.escape()?;
                    bytes.extend_from_slice(escaped.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
                0..0x20 => return Err(self.flaw("a string with a control character or line break, or an open quote")),
                _ => {}
            }
            let rest = self.buffer.get(self.at..self.filled).unwrap_or_default();
            let count = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)).unwrap_or(rest.len());
            bytes.extend_from_slice(rest.get(..count).unwrap_or_default());
            self.at += count;
        }
        self.take();
        self.text = String::from_utf8(bytes).map_err(|_| self.flaw("the text is not UTF-8"))?;
        Ok(())
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Result<char, ReadError> {
        let byte = self.peek_byte()?;
        self.take();
        Ok(match byte {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.unit()?;
                let mut units = vec![first];
                if (0xD800..0xDC00).contains(&first) {
                    self.word("\\u")?;
                    units.push(self.unit()?);
                }
                match char::decode_utf16(units).next() {
                    Some(Ok(letter)) => letter,
                    _ => return Err(self.flaw("a half of a surrogate pair")),
                }
            }
            _ => return Err(self.flaw("an unknown escape in a string")),
        })
    }

    fn unit(&mut self) -> Result<u16, ReadError> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.peek_byte()?.and_then(|byte| char::from(byte).to_digit(16));
            let Some(digit) = digit.and_then(|digit| u16::try_from(digit).ok()) else {
                return Err(self.flaw("\\u without four hexadecimal digits"));
            };
            unit = (unit << 4) | digit;
            self.take();
        }
        Ok(unit)
    }

    /// Reads a value that is not used. `depth` is its level.
    pub(super) fn skip(&mut self, depth: usize) -> Result<(), ReadError> {
        match self.peek_token()? {
            b'{' => {
                self.descend(depth)?;
                let mut is_first = true;
                while self.has_next(b'}', is_first)? {
                    is_first = false;
                    self.key()?;
                    self.skip(depth + 1)?;
                }
                Ok(())
            }
            b'[' => {
                self.descend(depth)?;
                let mut is_first = true;
                while self.has_next(b']', is_first)? {
                    is_first = false;
                    self.skip(depth + 1)?;
                }
                Ok(())
            }
            b'"' => self.string(),
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            _ => self.number(),
        }
    }

    /// Takes the bracket of an array or object at `depth`.
    pub(super) fn descend(&mut self, depth: usize) -> Result<(), ReadError> {
        if depth > MAX_DEPTH {
            return Err(self.flaw(format!("more than {MAX_DEPTH} levels of arrays and objects")));
        }
        self.take();
        Ok(())
    }
}

/// The grammar of a number: no leading zeros, digits on both sides of a point.
fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(is_digits)
        && exponent.is_none_or(is_digits)
}

#[cfg(test)]
mod tests;
