//! Paths of files in the text that clients get: relative to the directory of their table. The paths of the server's
//! file system are not the clients' concern; the log has them.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use datafusion::object_store::path::Path as StorePath;

use crate::catalog::TableSpec;
use crate::engine::EngineError;

/// The directories whose paths clients do not get.
#[derive(Debug, Default)]
pub(super) struct Directories {
    /// With a `/` at the end; the longest first.
    prefixes: Vec<String>,
}

impl Directories {
    pub(super) fn new(directories: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut prefixes = Vec::new();
        // The root of the file system has no name to hide.
        let absolute = directories.into_iter().filter_map(|path| std::path::absolute(path).ok());
        for directory in absolute.filter(|path| path.parent().is_some()) {
            let prefix = format!("{}/", directory.display());
            // Plans have the paths of DataFusion's store, which do not begin with `/`, and may have escapes. A single
            // name could as well be a part of the query.
            if directory.components().count() > 2 {
                prefixes.extend(prefix.strip_prefix('/').map(str::to_owned));
                prefixes.extend(StorePath::from_absolute_path(&directory).ok().map(|path| format!("{path}/")));
            }
            prefixes.push(prefix);
        }
        prefixes.sort_by(|a, b| (Reverse(a.len()), a).cmp(&(Reverse(b.len()), b)));
        prefixes.dedup();
        Directories { prefixes }
    }

    /// The directories of a table: that of its files, and the one around it.
    pub(super) fn of_table(spec: &TableSpec) -> impl Iterator<Item = PathBuf> {
        let own = spec.is_directory.then(|| spec.path.clone());
        own.into_iter().chain(spec.path.parent().map(ToOwned::to_owned))
    }

    /// The text with relative paths.
    pub(super) fn relative<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.prefixes.iter().fold(Cow::Borrowed(text), |text, prefix| match without(&text, prefix) {
            Some(relative) => Cow::Owned(relative),
            None => text,
        })
    }

    fn relative_message(&self, message: String) -> String {
        let relative = match self.relative(&message) {
            Cow::Owned(relative) => Some(relative),
            Cow::Borrowed(_) => None,
        };
        relative.unwrap_or(message)
    }

    /// The error as a client gets it. The log gets it whole.
    pub(super) fn hide(&self, error: EngineError) -> EngineError {
        if matches!(self.relative(&error.to_string()), Cow::Owned(_)) {
            tracing::info!(%error, "a query failed");
        }
        let relative = |message| self.relative_message(message);
        match error {
            EngineError::Source { tables, path, reason } => {
                let path = path.map(|path| relative(path.display().to_string()).into());
                EngineError::Source { tables, path, reason: relative(reason) }
            }
            EngineError::Plan { message } => EngineError::Plan { message: relative(message) },
            EngineError::Execution { message } => EngineError::Execution { message: relative(message) },
            EngineError::ResourcesExhausted { message } => {
                EngineError::ResourcesExhausted { message: relative(message) }
            }
            EngineError::Internal { message } => EngineError::Internal { message: relative(message) },
            other => other,
        }
    }

    /// Rows of `EXPLAIN`, with relative paths.
    pub(super) fn hide_in_plan(&self, batch: RecordBatch) -> RecordBatch {
        let hidden = |column: &ArrayRef| match column.as_any().downcast_ref::<StringArray>() {
            Some(text) => {
                let relative = text.iter().map(|value| value.map(|value| self.relative(value)));
                Arc::new(relative.collect::<StringArray>()) as ArrayRef
            }
            None => Arc::clone(column),
        };
        let columns = batch.columns().iter().map(hidden).collect();
        RecordBatch::try_new(batch.schema(), columns).unwrap_or(batch)
    }
}

/// The text without this beginning of paths, if it has any.
fn without(text: &str, prefix: &str) -> Option<String> {
    let mut kept = String::new();
    let mut rest = 0;
    for (at, _) in text.match_indices(prefix) {
        let before = &text[..at];
        let is_within_a_name = before.ends_with(|c: char| c.is_alphanumeric() || "/._-%".contains(c));
        if !is_within_a_name || before.ends_with("file://") {
            kept.push_str(&text[rest..at]);
            rest = at + prefix.len();
        }
    }
    (rest > 0).then(|| kept + &text[rest..])
}

#[cfg(test)]
mod tests {
    use arrow_schema::{DataType, Field, Schema};

    use super::*;

    fn directories() -> Directories {
        Directories::new(["/srv/data", "/srv/data/lineitem", "/", "/srv/odd [1]"].map(PathBuf::from))
    }

    #[test]
    fn paths_are_relative_to_the_directory_of_their_table() {
        for (text, expected) in [
            ("/srv/data/orders.csv: line 3", "orders.csv: line 3"),
            ("(/srv/data/lineitem/year=2024/a.parquet)", "(year=2024/a.parquet)"),
            ("{1 group: [[srv/data/a.csv, srv/data/b.csv:0..7]]}", "{1 group: [[a.csv, b.csv:0..7]]}"),
            ("at file:///srv/data/a.csv", "at file://a.csv"),
            ("/srv/odd [1]/a.csv and srv/odd [1]/a.csv", "a.csv and a.csv"),
            ("/mnt/srv/data/a.csv and mysrv/data/a.csv", "/mnt/srv/data/a.csv and mysrv/data/a.csv"),
            ("/srv/data", "/srv/data"),
            ("no path / at all", "no path / at all"),
        ] {
            assert_eq!(directories().relative(text), expected);
        }
    }

    #[test]
    fn errors_and_plans_have_relative_paths() {
        let error = EngineError::Source {
            tables: vec!["orders".into()],
            path: Some("/srv/data/orders.csv".into()),
            reason: "it differs from /srv/data/other.csv".into(),
        };
        let hidden = directories().hide(error).message();
        assert_eq!(hidden, "cannot read table 'orders' (orders.csv): it differs from other.csv");
        let schema = Schema::new(vec![Field::new("plan", DataType::Utf8, true)]);
        let plan: ArrayRef = Arc::new(StringArray::from(vec![Some("Scan [[srv/data/a.csv]]"), None]));
        let hidden = directories().hide_in_plan(RecordBatch::try_new(Arc::new(schema), vec![plan]).unwrap());
        let expected: ArrayRef = Arc::new(StringArray::from(vec![Some("Scan [[a.csv]]"), None]));
        assert_eq!(hidden.column(0), &expected);
    }
}
