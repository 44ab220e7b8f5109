//! Counts in the metadata of a Parquet file, which have to agree: `count(*)` is answered from them without a scan.

use datafusion::parquet::file::metadata::ParquetMetaData;
use datafusion::parquet::file::statistics::Statistics;

/// Checks that the rows of the file are those of its row groups, and these those of their columns.
pub(super) fn check(metadata: &ParquetMetaData) -> Result<(), String> {
    let mut total = Some(0_i64);
    for (index, group) in metadata.row_groups().iter().enumerate() {
        let rows = group.num_rows();
        if rows < 0 {
            return Err(format!("row group {index} is said to have {rows} rows"));
        }
        total = total.and_then(|total| total.checked_add(rows));
        for column in group.columns() {
            let (values, path) = (column.num_values(), column.column_path());
            // A row of a column without lists has one value, which may be NULL; a list has one at least, even if empty.
            let is_list = column.column_descr().max_rep_level() > 0;
            if values < rows || (values > rows && !is_list) {
                return Err(format!("column {path} of row group {index} has {values} values for {rows} rows"));
            }
            let nulls = column.statistics().and_then(Statistics::null_count_opt);
            if let Some(nulls) = nulls.filter(|nulls| i64::try_from(*nulls).ok().is_none_or(|nulls| nulls > values)) {
                return Err(format!("column {path} of row group {index} has {nulls} NULLs of {values} values"));
            }
        }
    }
    let said = metadata.file_metadata().num_rows();
    match total {
        Some(total) if total == said => Ok(()),
        _ => Err(format!("its row groups together do not have the {said} rows that it is said to have")),
    }
}
