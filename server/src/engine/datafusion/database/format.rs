//! `catalog.json`: its text, and the checks of what it says.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow_ipc::writer::{IpcDataGenerator, IpcWriteOptions};
use arrow_schema::{Schema, SchemaRef};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::super::files::{check_names, schema_of_message};
use super::super::names::SCHEMA;
use super::disk::{Disk, is_data_name};
use super::error::DatabaseError;
use super::name::Name;
use super::snapshot::{Object, Objects, Snapshot, StoredTable, StoredView};
use super::stored_file::StoredFile;
use crate::catalog::{Format, name_flaw};

/// The format that this server writes. A change of the meaning of the text needs another number.
const FORMAT: u32 = 1;

/// The whole text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: u32,
    /// CRC-32 of the catalog as this server writes it, in hexadecimal digits: an edited catalog is refused.
    checksum: String,
    catalog: CatalogText,
}

/// The part that every format has.
#[derive(Deserialize)]
struct AnyText {
    format: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogText {
    commit: u64,
    schemas: BTreeMap<String, SchemaText>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SchemaText {
    tables: BTreeMap<String, TableText>,
    views: BTreeMap<String, ViewText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableText {
    /// Names and types, for people. The columns follow from `schema` alone.
    columns: Vec<String>,
    /// The Arrow schema as a message of Arrow IPC, in base64.
    schema: String,
    format: Format,
    files: Vec<FileText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    name: String,
    rows: u64,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ViewText {
    sql: String,
    default_schema: String,
    schema: String,
    nesting: usize,
    /// Pairs of a schema and a name.
    reads: Vec<(String, String)>,
}

/// The text of a snapshot.
pub(super) fn to_text(snapshot: &Snapshot) -> Result<Vec<u8>, String> {
    let mut schemas = BTreeMap::new();
    for (name, objects) in &snapshot.schemas {
        let mut text = SchemaText::default();
        for (name, object) in objects {
            match object {
                Object::Table(table) => _ = text.tables.insert(name.clone(), table_text(table)?),
                Object::View(view) => _ = text.views.insert(name.clone(), view_text(view)?),
            }
        }
        schemas.insert(name.clone(), text);
    }
    let catalog = CatalogText { commit: snapshot.commit, schemas };
    let text = Text { format: FORMAT, checksum: checksum(&catalog)?, catalog };
    serde_json::to_vec_pretty(&text).map_err(|e| e.to_string())
}

fn checksum(catalog: &CatalogText) -> Result<String, String> {
    let text = serde_json::to_vec(catalog).map_err(|e| e.to_string())?;
    Ok(format!("{:08x}", crc32fast::hash(&text)))
}

fn table_text(table: &StoredTable) -> Result<TableText, String> {
    let columns = table.schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type()));
    let file = |file: &Arc<StoredFile>| FileText { name: file.name.clone(), rows: file.rows, bytes: file.bytes };
    Ok(TableText {
        columns: columns.collect(),
        schema: schema_to_text(&table.schema)?,
        format: table.format,
        files: table.files.iter().map(file).collect(),
    })
}

fn view_text(view: &StoredView) -> Result<ViewText, String> {
    Ok(ViewText {
        sql: view.sql.clone(),
        default_schema: view.default_schema.clone(),
        schema: schema_to_text(&view.schema)?,
        nesting: view.nesting,
        reads: view.reads.iter().map(|name| (name.schema.clone(), name.object.clone())).collect(),
    })
}

/// The snapshot of a text.
pub(super) fn from_text(text: &[u8], disk: &Arc<Disk>) -> Result<Snapshot, DatabaseError> {
    let corrupt = |reason: String| DatabaseError::Corrupt { path: disk.catalog_path(), reason };
    let AnyText { format } = serde_json::from_slice(text).map_err(|e| corrupt(e.to_string()))?;
    if format != FORMAT {
        return Err(DatabaseError::Version { path: disk.catalog_path(), found: format, known: FORMAT });
    }
    let text: Text = serde_json::from_slice(text).map_err(|e| corrupt(e.to_string()))?;
    if checksum(&text.catalog).map_err(corrupt)? != text.checksum {
        return Err(corrupt("its checksum does not fit its content".to_owned()));
    }
    snapshot(text.catalog, disk).map_err(corrupt)
}

fn snapshot(catalog: CatalogText, disk: &Arc<Disk>) -> Result<Snapshot, String> {
    let mut files = HashSet::new();
    let mut schemas = BTreeMap::new();
    for (schema, text) in catalog.schemas {
        check_name(&schema)?;
        let mut objects = Objects::new();
        for (name, table) in text.tables {
            check_name(&name)?;
            let table = stored_table(table, disk, &mut files).map_err(|e| format!("table `{name}`: {e}"))?;
            objects.insert(name, Object::Table(Arc::new(table)));
        }
        for (name, view) in text.views {
            check_name(&name)?;
            let view = stored_view(view).map_err(|e| format!("view `{name}`: {e}"))?;
            if objects.insert(name.clone(), Object::View(Arc::new(view))).is_some() {
                return Err(format!("`{name}` is both a table and a view"));
            }
        }
        schemas.insert(schema, objects);
    }
    schemas.entry(SCHEMA.to_owned()).or_default();
    Ok(Snapshot { commit: catalog.commit, schemas })
}

fn check_name(name: &str) -> Result<(), String> {
    name_flaw(name).map_or(Ok(()), |flaw| Err(format!("the name {name:?}: {flaw}")))
}

fn stored_table(table: TableText, disk: &Arc<Disk>, known: &mut HashSet<String>) -> Result<StoredTable, String> {
    let schema = schema_of_text(&table.schema)?;
    check_names(&schema)?;
    if !matches!(table.format, Format::Parquet | Format::Arrow) {
        return Err(format!("data files of the format {}", table.format.as_str()));
    }
    let mut files = Vec::with_capacity(table.files.len());
    for FileText { name, rows, bytes } in table.files {
        if !is_data_name(&name) {
            return Err(format!("{name:?} cannot be a data file"));
        }
        if !known.insert(name.clone()) {
            return Err(format!("the data file {name} belongs to two tables"));
        }
        files.push(Arc::new(StoredFile::named(Arc::clone(disk), name, rows, bytes)));
    }
    Ok(StoredTable::new(schema, table.format, files))
}

fn stored_view(view: ViewText) -> Result<StoredView, String> {
    Ok(StoredView {
        schema: schema_of_text(&view.schema)?,
        sql: view.sql,
        default_schema: view.default_schema,
        nesting: view.nesting,
        reads: view.reads.into_iter().map(|(schema, object)| Name { schema, object }).collect(),
    })
}

/// Refuses a schema that could not be read back: such a catalog would not open again.
pub(super) fn check_schema(schema: &Schema) -> Result<(), String> {
    let read = schema_of_text(&schema_to_text(schema)?)?;
    match read.as_ref() == schema {
        true => Ok(()),
        false => Err("Arrow's schema message does not hold them".to_owned()),
    }
}

/// A schema as a message of Arrow IPC, which has every detail of it, in base64.
fn schema_to_text(schema: &Schema) -> Result<String, String> {
    let mut tracker = arrow_ipc::writer::DictionaryTracker::new(false);
    let options = IpcWriteOptions::default();
    let encoded = IpcDataGenerator {}.schema_to_bytes_with_dictionary_tracker(schema, &mut tracker, &options);
    Ok(STANDARD.encode(encoded.ipc_message))
}

fn schema_of_text(text: &str) -> Result<SchemaRef, String> {
    let bytes = STANDARD.decode(text).map_err(|e| format!("its schema is no base64: {e}"))?;
    schema_of_message(&bytes).map_err(|e| format!("its schema: {e}"))
}
