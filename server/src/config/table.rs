//! The configuration of one table.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{ColumnType, Format};

/// Records of a CSV file from which the types of its columns are inferred, if the configuration has no other number.
const SAMPLE_ROWS: usize = 1000;

/// One table. In TOML either its path, or a table of these keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableConfig {
    /// File or directory of the table.
    pub path: PathBuf,
    /// Format of the files; by default recognized by their names (or, without extension, by their first bytes).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Types of columns, by name, instead of the inferred ones. Columns of the directories' names too.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub types: BTreeMap<String, ColumnType>,
    /// Whether all columns of a CSV file without a type in `types` are text.
    pub all_text: bool,
    /// Records of a CSV file from which types are inferred. A later value that does not fit is an error.
    pub sample_rows: usize,
    /// Whether the first line of a CSV file names its columns.
    pub header: bool,
    /// Separator of the fields of a CSV file, one ASCII character; by default a comma (in .tsv files a tab).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<char>,
    /// Quotation mark of a CSV file, one ASCII character.
    pub quote: char,
    /// Character that makes a quotation mark within quotes literal, besides a doubled one; one ASCII character.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub escape: Option<char>,
    /// Lines of a CSV file that begin with this ASCII character are ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<char>,
    /// The unquoted text that means NULL in a CSV file; by default the empty text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub null: Option<String>,
    /// Whether quoted fields of a CSV file may contain line breaks. If not, one large file is read in parallel.
    pub quoted_newlines: bool,
}

impl TableConfig {
    /// The table at `path`, with defaults for the rest.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        TableConfig {
            path: path.into(),
            format: None,
            types: BTreeMap::new(),
            all_text: false,
            sample_rows: SAMPLE_ROWS,
            header: true,
            delimiter: None,
            quote: '"',
            escape: None,
            comment: None,
            null: None,
            quoted_newlines: true,
        }
    }

    /// The keys with a character, for a check of their range.
    pub(super) fn characters(&self) -> [(&'static str, Option<char>); 4] {
        [("delimiter", self.delimiter), ("quote", Some(self.quote)), ("escape", self.escape), ("comment", self.comment)]
    }
}

impl<'de> Deserialize<'de> for TableConfig {
    // Not derived, because an untagged enum would not report the name of an unknown key.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Keys {
            path: PathBuf,
            format: Option<Format>,
            #[serde(default)]
            types: BTreeMap<String, ColumnType>,
            #[serde(default)]
            all_text: bool,
            sample_rows: Option<usize>,
            header: Option<bool>,
            delimiter: Option<char>,
            quote: Option<char>,
            escape: Option<char>,
            comment: Option<char>,
            null: Option<String>,
            quoted_newlines: Option<bool>,
        }

        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = TableConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or a table with the key `path`")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<TableConfig, E> {
                Ok(TableConfig::at(path))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<TableConfig, A::Error> {
                let keys = Keys::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let default = TableConfig::at(keys.path);
                Ok(TableConfig {
                    format: keys.format,
                    types: keys.types,
                    all_text: keys.all_text,
                    sample_rows: keys.sample_rows.unwrap_or(default.sample_rows),
                    header: keys.header.unwrap_or(default.header),
                    delimiter: keys.delimiter,
                    quote: keys.quote.unwrap_or(default.quote),
                    escape: keys.escape,
                    comment: keys.comment,
                    null: keys.null,
                    quoted_newlines: keys.quoted_newlines.unwrap_or(default.quoted_newlines),
                    ..default
                })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
