//! Text that another process has written, for a log or a terminal: it stays on its line and controls no terminal.

use std::borrow::Cow;
use std::io;

/// The text with control characters, line breaks among them, and marks that reorder text escaped as in Rust: `\n`,
/// `\u{1b}`.
#[must_use]
pub fn one_line(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_escaped) { Cow::Owned(escaped(text, is_escaped)) } else { Cow::Borrowed(text) }
}

fn is_escaped(c: char) -> bool {
    // Marks of bidirectional text show a line in another order than it has.
    (c.is_control() && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut line = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// A writer of records that are one line each, such as those of a log. Line breaks within a record, and other control
/// characters, are escaped as by [`one_line`]: a peer's text cannot imitate a record. Each call of `write` is one
/// record with the line break at its end.
#[derive(Debug)]
pub struct OneLineRecords<W> {
    inner: W,
    colours: bool,
}

impl<W: io::Write> OneLineRecords<W> {
    /// A writer to `inner`. `colours`: the records have escape sequences of their own, and only these.
    pub fn new(inner: W, colours: bool) -> Self {
        OneLineRecords { inner, colours }
    }
}

impl<W: io::Write> io::Write for OneLineRecords<W> {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(record);
        let (body, end) = text.strip_suffix('\n').map_or((&*text, ""), |body| (body, "\n"));
        let line = escaped(body, |c| is_escaped(c) && !(self.colours && c == '\u{1b}'));
        self.inner.write_all((line + end).as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_peers_text_stays_on_its_line() {
        assert!(matches!(one_line("a name\twith a tab, ünïcode"), Cow::Borrowed(_)));
        assert_eq!(one_line("a\r\n\u{1b}[2Jb\u{9b}1m\u{202e}c\0"), "a\\r\\n\\u{1b}[2Jb\\u{9b}1m\\u{202e}c\\u{0}");
    }

    #[test]
    fn a_record_is_one_line() {
        for (colours, expected) in [(false, "\\u{1b}[1mx\\nWARN forged\\r\n"), (true, "\u{1b}[1mx\\nWARN forged\\r\n")]
        {
            let mut written = Vec::new();
            let mut records = OneLineRecords::new(&mut written, colours);
            records.write_all(b"\x1b[1mx\nWARN forged\r\n").unwrap();
            records.write_all(b"second\n").unwrap();
            assert_eq!(String::from_utf8(written).unwrap(), format!("{expected}second\n"));
        }
    }
}
