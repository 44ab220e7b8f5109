//! How a file of CSV is written.

use crate::catalog::Compression;

/// How a file is written.
#[derive(Clone, Debug)]
pub(in super::super) struct CsvOptions {
    pub(in super::super) compression: Compression,
    /// Whether the first record has the names of the columns.
    pub(in super::super) header: bool,
    pub(in super::super) delimiter: u8,
    pub(in super::super) quote: u8,
    /// A character that takes its meaning from the next one, within quotes.
    pub(in super::super) escape: Option<u8>,
    /// The first character of lines to skip.
    pub(in super::super) comment: Option<u8>,
    /// The word for NULL, unless quoted. With it an empty text is a text, without it NULL.
    pub(in super::super) null: Option<String>,
    /// Whether texts may have several lines, so that the file cannot be read in parts.
    pub(in super::super) quoted_newlines: bool,
    /// Number of records that the types are inferred from.
    pub(in super::super) sample_rows: usize,
    /// Whether all columns are text.
    pub(in super::super) all_text: bool,
    /// Columns of a declared type: they take `007` as an integer, and round large integers to floats.
    pub(in super::super) declared: Vec<String>,
}

impl Default for CsvOptions {
    fn default() -> Self {
        CsvOptions {
            compression: Compression::None,
            header: true,
            delimiter: b',',
            quote: b'"',
            escape: None,
            comment: None,
            null: None,
            quoted_newlines: false,
            sample_rows: 1000,
            all_text: false,
            declared: Vec::new(),
        }
    }
}
