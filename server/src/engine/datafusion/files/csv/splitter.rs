//! Splits the bytes of a file of CSV into records.

use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::Path;

use super::super::error::ReadError;
use super::super::input::{self, filled};
use super::machine::{MAX_RECORD, Machine};
use super::options::CsvOptions;
use super::records::Records;

const BUFFER: usize = 256 * 1024;

pub(super) type Input = BufReader<Box<dyn Read + Send>>;

/// The records of a file, or of the lines that begin in `range`.
pub(super) fn open(path: &Path, options: &CsvOptions, range: Option<Range<u64>>) -> Result<Splitter<Input>, ReadError> {
    let is_part = range.is_some();
    let input = BufReader::with_capacity(BUFFER, input::open(path, options.compression, range)?);
    Ok(Splitter::new(input, options, is_part))
}

/// Reads records.
pub(super) struct Splitter<R> {
    input: R,
    machine: Machine,
    /// Bytes read.
    consumed: u64,
}

impl<R: BufRead> Splitter<R> {
    /// `is_part`: only some of the file's lines are read, so that no record may go over several.
    pub(super) fn new(input: R, options: &CsvOptions, is_part: bool) -> Self {
        let breaks_in_quotes = !is_part;
        Splitter { input, machine: Machine::new(options, breaks_in_quotes), consumed: 0 }
    }

    /// From now on a record has `keep.len()` fields, of which those marked are kept.
    pub(super) fn keep(&mut self, keep: Vec<bool>) {
        self.machine.keep(keep);
    }

    pub(super) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Whether a line break lay within quotes.
    pub(super) fn saw_break_in_quotes(&self) -> bool {
        self.machine.saw_break_in_quotes()
    }

    /// Number of fields of the last record.
    pub(super) fn width(&self) -> usize {
        self.machine.width()
    }

    /// Adds the next record to `records`; `false` at the end of the file.
    pub(super) fn next(&mut self, records: &mut Records) -> Result<bool, ReadError> {
        let mut size = 0;
        loop {
            let bytes = filled(&mut self.input)?;
            if bytes.is_empty() {
                return self.machine.end_of_file(records);
            }
            let (used, is_record) = self.machine.run(bytes, records)?;
            self.input.consume(used);
            self.consumed += used as u64;
            if is_record {
                return Ok(true);
            }
            size = if self.machine.is_between() { 0 } else { size + used as u64 };
            if size > MAX_RECORD {
                return Err(self.machine.too_long());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::Field;
    use super::*;

    fn split(text: &[u8], buffer: usize, options: &CsvOptions) -> Result<Vec<(u64, Vec<String>)>, ReadError> {
        let mut splitter = Splitter::new(BufReader::with_capacity(buffer, text), options, false);
        let (mut records, mut all) = (Records::default(), Vec::new());
        while splitter.next(&mut records)? {
            let rows = records.rows(splitter.width(), |column| column.to_string())?;
            let shown =
                |field: Field<'_>| if field.quoted { format!("<{}>", field.text) } else { field.text.to_owned() };
            all.push((rows.line(0).unwrap(), rows.first().map(shown).collect()));
            records.clear();
        }
        Ok(all)
    }

    #[track_caller]
    fn check(text: &str, options: &CsvOptions, want: &[(u64, &[&str])]) {
        for buffer in [1, 2, 3, 7, 1000] {
            let got = split(text.as_bytes(), buffer, options).unwrap();
            let want: Vec<(u64, Vec<String>)> =
                want.iter().map(|(line, fields)| (*line, fields.iter().map(|f| (*f).to_owned()).collect())).collect();
            assert_eq!(got, want, "{text:?} by {buffer}");
        }
    }

    #[test]
    fn records_and_lines() {
        let plain = CsvOptions::default();
        check("a,b\n1,2\n", &plain, &[(1, &["a", "b"]), (2, &["1", "2"])]);
        check("a,b\r1,2\r3,4", &plain, &[(1, &["a", "b"]), (2, &["1", "2"]), (3, &["3", "4"])]);
        check("a,b\r\n1,2\r\n\r\n3,4\r\n", &plain, &[(1, &["a", "b"]), (2, &["1", "2"]), (4, &["3", "4"])]);
        check("a,b\n\n\n1,\n", &plain, &[(1, &["a", "b"]), (4, &["1", ""])]);
        check("a,\n,", &plain, &[(1, &["a", ""]), (2, &["", ""])]);
        check("\"\",\"x\ny\"\nz,\"\"\"\"\n", &plain, &[(1, &["<>", "<x\ny>"]), (3, &["z", "<\">"])]);
        check("\"x\r\ny\rz\"\nw", &plain, &[(1, &["<x\r\ny\rz>"]), (4, &["w"])]);
        check("5\" disk,a\"\"b\n", &plain, &[(1, &["5\" disk", "a\"\"b"])]);
        check(" \"a\",b", &plain, &[(1, &[" \"a\"", "b"])]);
        check("", &plain, &[]);
        check("\n\r\n\r", &plain, &[]);
        check("x\0y,é\n", &plain, &[(1, &["x\0y", "é"])]);
        let escape = CsvOptions { escape: Some(b'\\'), ..CsvOptions::default() };
        check("1,\"a \\\"b\\\" \"\"c\\\\\"\nx\\y", &escape, &[(1, &["1", "<a \"b\" \"c\\>"]), (2, &["x\\y"])]);
        let comment = CsvOptions { comment: Some(b'#'), ..CsvOptions::default() };
        check("# c, \"\na#,b\n#\n1,#2\n#end", &comment, &[(2, &["a#", "b"]), (4, &["1", "#2"])]);
        check("#c\ra\r1", &comment, &[(2, &["a"]), (3, &["1"])]);
        let other = CsvOptions { delimiter: b'\t', quote: b'\'', ..CsvOptions::default() };
        check("'a\tb'\t\"c\n", &other, &[(1, &["<a\tb>", "\"c"])]);
    }

    #[test]
    fn flaws_name_the_line() {
        let flaw = |text: &[u8]| {
            let errors: Vec<String> = [1, 2, 1000]
                .into_iter()
                .map(|buffer| split(text, buffer, &CsvOptions::default()).unwrap_err().to_string())
                .collect();
            assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
            errors[0].clone()
        };
        assert!(flaw(b"a,b\n1,\"5 inch\n2,x\n3,y\n").starts_with("line 2: the quote opened here"));
        assert!(flaw(b"a,b\n1,\"5 inch\n2,\"6 inch\n3,y\n").starts_with("line 2: text follows the closing quote"));
        assert!(flaw(b"a\n\n\"x\"y\n").starts_with("line 3: text follows"));
        assert!(flaw(b"a\n\"").starts_with("line 2: "));
        assert!(flaw(b"a,b\n1,caf\xe9\n").starts_with("line 2: 1: the text is not UTF-8"));
        assert!(flaw(b"a,b\n\xc3,\xa9\n").starts_with("line 2: 0: the text is not UTF-8"));
    }

    #[test]
    fn kept_fields_and_their_number() {
        let text = b"1,2,3\n4,5,6\n7,8\n";
        let mut splitter = Splitter::new(BufReader::new(text.as_slice()), &CsvOptions::default(), false);
        splitter.keep(vec![false, true, false]);
        let mut records = Records::default();
        assert!(splitter.next(&mut records).unwrap());
        assert!(splitter.next(&mut records).unwrap());
        let rows = records.rows(1, |_| String::new()).unwrap();
        assert_eq!(rows.column(0).map(|field| field.text).collect::<Vec<_>>(), ["2", "5"]);
        let error = splitter.next(&mut records).unwrap_err().to_string();
        assert_eq!(error, "line 3: 2 fields, but 3 columns");
    }

    #[test]
    fn a_part_has_no_breaks_in_quotes() {
        let text = b"1,\"a\nb\"\n";
        let mut splitter = Splitter::new(BufReader::new(text.as_slice()), &CsvOptions::default(), true);
        let error = splitter.next(&mut Records::default()).unwrap_err().to_string();
        assert!(error.starts_with("line 1: a line ends within the quotes"), "{error}");
    }
}
