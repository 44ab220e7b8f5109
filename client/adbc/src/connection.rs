//! A connection: its options, and requests about the server's catalog.

use std::collections::HashSet;
use std::sync::Arc;

use adbc_core::error::{Result, Status};
use adbc_core::options::{InfoCode, ObjectDepth, OptionConnection, OptionValue};
use adbc_core::{CancelHandle, Connection, Optionable, constants};
use arrow::datatypes::Schema;
use thallus_client::{CatalogObject, Defaults, Depth, ObjectsRequest};

use crate::cancel::Watch;
use crate::error::{invalid_argument, invalid_state, not_found, not_implemented};
use crate::metadata::{info, objects, statistics};
use crate::option::{flag, getters, text, unknown};
use crate::partition::Descriptor;
use crate::reader::Reader;
use crate::session::Session;
use crate::settings::{self, Delivery, Settings};
use crate::shared::Shared;
use crate::statement::ThallusStatement;
use crate::{reader, reader::Live};

/// Names of the options besides those of queries.
const NAMES: [&str; 5] = [
    constants::ADBC_CONNECTION_OPTION_AUTOCOMMIT,
    constants::ADBC_CONNECTION_OPTION_READ_ONLY,
    constants::ADBC_CONNECTION_OPTION_CURRENT_CATALOG,
    constants::ADBC_CONNECTION_OPTION_CURRENT_DB_SCHEMA,
    constants::ADBC_CONNECTION_OPTION_ISOLATION_LEVEL,
];

/// Schemas that describe the others or the server, and are never the current one.
const SYSTEM_SCHEMAS: [&str; 2] = ["information_schema", "server"];

/// A connection to a server. Its statements run on it concurrently.
#[derive(Debug)]
pub struct ThallusConnection {
    shared: Arc<Shared>,
    settings: Settings,
}

impl ThallusConnection {
    pub(crate) fn new(session: Arc<Session>, settings: Settings) -> Self {
        ThallusConnection { shared: Arc::new(Shared::new(session)), settings }
    }

    fn set_catalog(&self, name: String) -> Result<()> {
        let request = objects::request(Depth::Catalogs, Some(&name), None, None);
        self.must_exist(&request, &format!("catalog {name:?}"))?;
        self.shared.set_catalog(name);
        Ok(())
    }

    fn set_schema(&self, name: String) -> Result<()> {
        let catalog = self.shared.defaults().catalog;
        let request = objects::request(Depth::Schemas, catalog.as_deref(), Some(&name), None);
        self.must_exist(&request, &format!("schema {name:?}"))?;
        self.shared.set_schema(name);
        Ok(())
    }

    /// Checks that the server has what is asked for, if its engine can list objects at all.
    fn must_exist(&self, request: &ObjectsRequest, what: &str) -> Result<()> {
        match self.shared.objects(request) {
            // A catalog without a matching schema is listed all the same.
            Ok(found) if !found.iter().any(|object| request.schema.is_none() || object.schema.is_some()) => {
                Err(not_found(format!("the server has no {what}")))
            }
            Err(error) if error.status != Status::NotImplemented => Err(error),
            _ => Ok(()),
        }
    }

    /// The objects that ADBC's patterns match. An empty pattern asks for objects without a catalog, or without a
    /// schema, and there are none: only the catalogs remain.
    fn matching_objects(&self, request: ObjectsRequest) -> Result<Vec<CatalogObject>> {
        if request.catalog.as_deref() == Some("") {
            return Ok(Vec::new());
        }
        if request.schema.as_deref() == Some("") {
            let catalogs = ObjectsRequest { depth: Depth::Catalogs, catalog: request.catalog, ..Default::default() };
            return self.shared.objects(&catalogs);
        }
        self.shared.objects(&request)
    }

    /// The current catalog: as set, as the server tells, or the only one.
    fn catalog(&self) -> Result<Option<String>> {
        let known = || Ok::<_, adbc_core::error::Error>(self.shared.session.client()?.vendor().defaults.catalog);
        if let Some(current) = self.shared.defaults().catalog.map_or_else(known, |set| Ok(Some(set)))? {
            return Ok(Some(current));
        }
        self.only(&objects::request(Depth::Catalogs, None, None, None), |object| Some(object.catalog))
    }

    /// The current schema: as set, as the server tells for its own catalog, or the only one besides those of the
    /// system.
    fn schema(&self) -> Result<Option<String>> {
        let Defaults { catalog, schema } = self.shared.defaults();
        let known = self.shared.session.client()?.vendor().defaults;
        let is_own = catalog.is_none() || catalog == known.catalog;
        if let Some(current) = schema.or(known.schema.filter(|_| is_own)) {
            return Ok(Some(current));
        }
        let request = objects::request(Depth::Schemas, catalog.as_deref(), None, None);
        self.only(&request, |object| object.schema.filter(|name| !SYSTEM_SCHEMAS.contains(&name.as_str())))
    }

    fn only(&self, request: &ObjectsRequest, name: impl Fn(CatalogObject) -> Option<String>) -> Result<Option<String>> {
        let found = match self.shared.objects(request) {
            Err(error) if error.status == Status::NotImplemented => return Ok(None),
            found => found?,
        };
        let mut names = found.into_iter().filter_map(name);
        let first = names.next();
        Ok(if names.next().is_some() { None } else { first })
    }

    fn value(&self, name: &str) -> Result<Option<String>> {
        Ok(match name {
            constants::ADBC_CONNECTION_OPTION_AUTOCOMMIT => Some(constants::ADBC_OPTION_VALUE_ENABLED.to_owned()),
            constants::ADBC_CONNECTION_OPTION_READ_ONLY => Some(constants::ADBC_OPTION_VALUE_DISABLED.to_owned()),
            constants::ADBC_CONNECTION_OPTION_ISOLATION_LEVEL => {
                Some(constants::ADBC_OPTION_ISOLATION_LEVEL_DEFAULT.to_owned())
            }
            constants::ADBC_CONNECTION_OPTION_CURRENT_CATALOG => self.catalog()?,
            constants::ADBC_CONNECTION_OPTION_CURRENT_DB_SCHEMA => self.schema()?,
            _ => self.settings.get(name),
        })
    }
}

fn no_transaction() -> adbc_core::error::Error {
    invalid_state("no transaction is active: each statement is its own (autocommit)")
}

impl Optionable for ThallusConnection {
    type Option = OptionConnection;

    fn set_option(&mut self, key: OptionConnection, value: OptionValue) -> Result<()> {
        let name = key.as_ref();
        match name {
            constants::ADBC_CONNECTION_OPTION_AUTOCOMMIT => match flag(name, &value)? {
                true => Ok(()),
                false => Err(not_implemented("transactions: each statement is its own (autocommit)")),
            },
            constants::ADBC_CONNECTION_OPTION_READ_ONLY => match flag(name, &value)? {
                false => Ok(()),
                true => Err(not_implemented("read-only connections: start the server read-only instead")),
            },
            constants::ADBC_CONNECTION_OPTION_ISOLATION_LEVEL => match text(name, value)?.as_str() {
                constants::ADBC_OPTION_ISOLATION_LEVEL_DEFAULT => Ok(()),
                other => Err(not_implemented(format!("isolation level {other:?}: there are no transactions"))),
            },
            constants::ADBC_CONNECTION_OPTION_CURRENT_CATALOG => self.set_catalog(text(name, value)?),
            constants::ADBC_CONNECTION_OPTION_CURRENT_DB_SCHEMA => self.set_schema(text(name, value)?),
            _ if settings::NAMES.contains(&name) => self.settings.set(name, &text(name, value)?).map(|_known| ()),
            _ => Err(unknown(name, &NAMES.into_iter().chain(settings::NAMES).collect::<Vec<_>>())),
        }
    }

    getters!(OptionConnection);
}

impl Connection for ThallusConnection {
    type StatementType = ThallusStatement;

    fn new_statement(&mut self) -> Result<ThallusStatement> {
        self.shared.session.client()?;
        Ok(ThallusStatement::new(Arc::clone(&self.shared), self.settings.clone()))
    }

    fn get_cancel_handle(&self) -> Box<dyn CancelHandle> {
        Box::new(self.shared.cancel.clone())
    }

    fn get_info(&self, codes: Option<HashSet<InfoCode>>) -> Result<Reader> {
        let vendor = self.shared.session.client()?.vendor();
        info::batch(&vendor.name, &vendor.version, codes.as_ref()).map(reader::of_batch)
    }

    fn get_objects(
        &self,
        depth: ObjectDepth,
        catalog: Option<&str>,
        db_schema: Option<&str>,
        table_name: Option<&str>,
        table_type: Option<Vec<&str>>,
        column_name: Option<&str>,
    ) -> Result<Reader> {
        let depth = match depth {
            ObjectDepth::All | ObjectDepth::Columns => Depth::Columns,
            ObjectDepth::Catalogs => Depth::Catalogs,
            ObjectDepth::Schemas => Depth::Schemas,
            ObjectDepth::Tables => Depth::Tables,
        };
        let request = ObjectsRequest {
            depth,
            catalog: catalog.map(str::to_owned),
            schema: db_schema.filter(|_| depth != Depth::Catalogs).map(str::to_owned),
            table: table_name.filter(|_| matches!(depth, Depth::Tables | Depth::Columns)).map(str::to_owned),
            kinds: table_type.map(|kinds| kinds.into_iter().map(str::to_owned).collect()),
        };
        let found = self.matching_objects(request)?;
        objects::batch(depth, found, column_name).map(reader::of_batch)
    }

    fn get_table_schema(&self, catalog: Option<&str>, db_schema: Option<&str>, table: &str) -> Result<Schema> {
        if db_schema.is_none() && catalog.is_some() {
            return Err(invalid_argument("the schema of a table in a catalog is missing"));
        }
        let names = [catalog, db_schema, Some(table)].into_iter().flatten().filter(|name| !name.is_empty());
        let name = names.map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect::<Vec<_>>().join(".");
        let Shared { session, cancel, .. } = &*self.shared;
        let (sql, defaults) = (format!("SELECT * FROM {name}"), self.shared.defaults());
        let described = session.client()?.describe_with(&sql, defaults);
        Ok(session.run(&mut Watch::new(cancel, None)?, described)?.result.as_ref().clone())
    }

    fn get_table_types(&self) -> Result<Reader> {
        let request = objects::request(Depth::Tables, None, None, None);
        let found = match self.shared.objects(&request) {
            Err(error) if error.status == Status::NotImplemented => Vec::new(),
            found => found?,
        };
        objects::table_types(found).map(reader::of_batch)
    }

    fn get_statistic_names(&self) -> Result<Reader> {
        self.shared.session.client()?;
        Ok(statistics::names())
    }

    fn get_statistics(
        &self,
        _catalog: Option<&str>,
        _db_schema: Option<&str>,
        _table_name: Option<&str>,
        _approximate: bool,
    ) -> Result<Reader> {
        Err(statistics::not_kept())
    }

    fn commit(&mut self) -> Result<()> {
        Err(no_transaction())
    }

    fn rollback(&mut self) -> Result<()> {
        Err(no_transaction())
    }

    fn read_partition(&self, partition: impl AsRef<[u8]>) -> Result<Reader> {
        let descriptor = Descriptor::from_bytes(partition.as_ref())?;
        let Shared { session, cancel, .. } = &*self.shared;
        let mut watch = Watch::new(cancel, None)?;
        let options = self.settings.query().with_defaults(descriptor.defaults());
        let result = session.run(&mut watch, session.client()?.query_with(&descriptor.sql, options))?;
        Ok(Live::new(result, &self.shared, watch).into_reader(self.settings.delivery == Delivery::Mapped))
    }
}
