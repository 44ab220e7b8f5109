//! Options of statements and uploads that concern the engine, not the transfer.

use bytes::Bytes;

use super::{ENGINE_CATALOG, ENGINE_NAME, ENGINE_SCHEMA, ENGINE_VERSION, Extensions};

/// The database behind a server. Both texts are empty if the server does not name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vendor {
    /// The product, as `DataFusion`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The catalog and the schema of names that have none, unless a request has others. Absent: the server does not
    /// tell.
    pub defaults: Defaults,
}

impl Vendor {
    pub(crate) fn extensions(&self) -> Extensions {
        let Defaults { catalog, schema } = &self.defaults;
        let names = [(ENGINE_NAME, Some(&self.name)), (ENGINE_VERSION, Some(&self.version))];
        let fields = names.into_iter().chain([(ENGINE_CATALOG, catalog.as_ref()), (ENGINE_SCHEMA, schema.as_ref())]);
        let present = fields.filter_map(|(key, text)| Some((key, text.filter(|text| !text.is_empty())?)));
        present.fold(Extensions::none(), |extensions, (key, text)| extensions.with(key, Bytes::from(text.clone())))
    }

    /// The vendor that a Welcome names.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        let text = |key| extensions.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
        let defaults = Defaults { catalog: text(ENGINE_CATALOG), schema: text(ENGINE_SCHEMA) };
        let (name, version) = (text(ENGINE_NAME).unwrap_or_default(), text(ENGINE_VERSION).unwrap_or_default());
        Vendor { name, version, defaults }
    }
}

/// The catalog and the schema of names that have none. Absent: the engine's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Defaults {
    /// The catalog.
    pub catalog: Option<String>,
    /// The schema.
    pub schema: Option<String>,
}

impl Defaults {
    /// The bytes of both names together.
    pub(crate) fn text_bytes(&self) -> usize {
        self.catalog.iter().chain(&self.schema).map(String::len).sum()
    }
}

/// The treatment of the table that receives an upload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IngestMode {
    /// No. 0: The table exists, and the rows are added.
    #[default]
    Append,
    /// No. 1: The table does not exist, and is created.
    Create,
    /// No. 2: The table is created, instead of one that exists.
    Replace,
    /// No. 3: The table is created, unless it exists, and the rows are added.
    CreateAppend,
}

/// Options of an upload for the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ingest {
    /// The treatment of the table.
    pub mode: IngestMode,
    /// The table lasts only as long as the connection.
    pub temporary: bool,
}

impl Ingest {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mode = match self.mode {
            IngestMode::Append => 0,
            IngestMode::Create => 1,
            IngestMode::Replace => 2,
            IngestMode::CreateAppend => 3,
        };
        vec![mode, u8::from(self.temporary)]
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (mode, temporary) = match bytes {
            [mode, temporary @ (0 | 1)] => (*mode, *temporary == 1),
            _ => return None,
        };
        let mode = match mode {
            0 => IngestMode::Append,
            1 => IngestMode::Create,
            2 => IngestMode::Replace,
            3 => IngestMode::CreateAppend,
            _ => return None,
        };
        Some(Ingest { mode, temporary })
    }
}
