//! Statements within text: each ends with `;` outside of strings, names and comments.

/// The place within SQL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Code,
    /// Within quotes of this kind. Doubled quotes end and begin again.
    Quoted(char),
    LineComment,
    /// Within comments in comments, this deep.
    BlockComment(usize),
}

/// Text of which statements are taken. Lines are added whole; each character is looked at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    text: String,
    /// The text before this has been looked at.
    at: usize,
    place: Place,
    /// The text so far has something besides white space and comments.
    has_code: bool,
    /// Number of line breaks that were taken out.
    lines: usize,
}

/// A statement without its `;`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) sql: String,
    /// The line of its first word, from 1.
    pub(super) line: usize,
}

impl Pending {
    /// No text, at the line after this one.
    pub(super) fn after(line: usize) -> Self {
        Pending { lines: line, ..Pending::default() }
    }

    /// Adds lines, each with its line break.
    pub(super) fn push(&mut self, lines: &str) {
        self.text.push_str(lines);
    }

    /// True if the text has only white space and whole comments.
    pub(super) fn is_blank(&self) -> bool {
        !self.has_code && !matches!(self.place, Place::BlockComment(_))
    }

    /// Takes the next statement that is complete. Statements without code are left out.
    pub(super) fn next(&mut self) -> Option<Statement> {
        while let Some(end) = self.end() {
            let statement = self.take(end);
            if statement.is_some() {
                return statement;
            }
        }
        None
    }

    /// Takes the text after the last `;`, at the end of the input.
    pub(super) fn rest(&mut self) -> Option<Statement> {
        self.take(self.text.len())
    }

    fn take(&mut self, end: usize) -> Option<Statement> {
        let text: String = self.text.drain(..end).collect();
        let has_code = std::mem::take(&mut self.has_code);
        (self.at, self.place) = (0, Place::Code);
        let sql = text.trim();
        let sql = sql.strip_suffix(';').unwrap_or(sql).trim_end();
        let before = text.len() - text.trim_start().len();
        let line = 1 + self.lines + text[..before].matches('\n').count();
        self.lines += text.matches('\n').count();
        has_code.then(|| Statement { sql: sql.to_owned(), line })
    }

    /// The end of the first statement, behind its `;`.
    fn end(&mut self) -> Option<usize> {
        let text = &self.text[self.at..];
        let mut chars = text.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            let next = chars.peek().map(|(_, next)| *next);
            let mut pair = |second: char| next == Some(second) && chars.next().is_some();
            self.place = match self.place {
                Place::Code if c == ';' => return Some(self.at + at + 1),
                Place::Code if c == '-' && pair('-') => Place::LineComment,
                Place::Code if c == '/' && pair('*') => Place::BlockComment(1),
                Place::Code => {
                    self.has_code |= !c.is_whitespace();
                    if matches!(c, '\'' | '"' | '`') { Place::Quoted(c) } else { Place::Code }
                }
                Place::Quoted(quote) if c == quote => Place::Code,
                Place::LineComment if c == '\n' => Place::Code,
                Place::BlockComment(depth) if c == '/' && pair('*') => Place::BlockComment(depth + 1),
                Place::BlockComment(1) if c == '*' && pair('/') => Place::Code,
                Place::BlockComment(depth) if c == '*' && pair('/') => Place::BlockComment(depth - 1),
                place => place,
            };
        }
        self.at = self.text.len();
        None
    }
}

/// Returns whether typed text can be run: it is a command, or all its statements end with `;`.
pub(super) fn is_complete(text: &str) -> bool {
    if is_command(text) {
        return true;
    }
    let mut pending = Pending::default();
    pending.push(text);
    pending.push("\n");
    while pending.next().is_some() {}
    pending.is_blank()
}

/// Returns whether a line is a command of the shell, if no statement has begun before it.
pub(super) fn is_command(line: &str) -> bool {
    line.trim_start().starts_with('\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(text: &str) -> (Vec<(String, usize)>, bool) {
        let mut pending = Pending::default();
        let mut found = Vec::new();
        for line in text.split_inclusive('\n') {
            pending.push(line);
            while let Some(statement) = pending.next() {
                found.push((statement.sql, statement.line));
            }
        }
        (found, pending.is_blank())
    }

    #[test]
    fn statements_end_at_semicolons_outside_of_strings_names_and_comments() {
        let one = |text: &str, sql: &str| assert_eq!(statements(text), (vec![(sql.to_owned(), 1)], true), "{text}");
        one("SELECT 1;", "SELECT 1");
        one("SELECT ';', 'it''s;', \"a;\"\"b\" ;", "SELECT ';', 'it''s;', \"a;\"\"b\"");
        one("SELECT 1 -- a; 'b\n, 2;\n", "SELECT 1 -- a; 'b\n, 2");
        one("SELECT /* ; /* ; */ ' */ 1;", "SELECT /* ; /* ; */ ' */ 1");
        one("SELECT 1-1/1;-- done; all", "SELECT 1-1/1");
        one("SELECT 'é;';;;", "SELECT 'é;'");
        one("SELECT 'a\n;\nb';", "SELECT 'a\n;\nb'");
    }

    #[test]
    fn each_statement_has_its_line() {
        let (found, blank) = statements("\n-- first\nSELECT 1; SELECT 2;\n\n  SELECT\n 3\n;\nSELECT 4");
        let expected = [("-- first\nSELECT 1", 2), ("SELECT 2", 3), ("SELECT\n 3", 5)];
        assert_eq!(found, expected.map(|(sql, line)| (sql.to_owned(), line)));
        assert!(!blank);
        let mut pending = Pending::default();
        pending.push("SELECT 1;\nSELECT 4");
        pending.next();
        assert_eq!(pending.next(), None);
        assert_eq!(pending.rest(), Some(Statement { sql: "SELECT 4".into(), line: 2 }));
        assert_eq!(pending.rest(), None);
    }

    #[test]
    fn typed_text_goes_on_until_it_is_complete() {
        for text in ["", "  ", "\\d t", "SELECT 1;", "SELECT 1; -- done", "-- nothing", "/* nothing */", "\n;\n"] {
            assert!(is_complete(text), "{text:?}");
        }
        for text in ["SELECT", "SELECT 1; SELECT", "SELECT ';", "/* a", "SELECT 1 -- ;", "SELECT \"a;"] {
            assert!(!is_complete(text), "{text:?}");
        }
    }
}
