//! Connections to one database. A connection runs one statement at a time, so there are several.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use adbc_core::error::{Error, Result as DriverResult};
use adbc_core::options::{AdbcVersion, OptionConnection, OptionDatabase, OptionValue};
use adbc_core::{Connection, Database, Driver, LOAD_FLAG_DEFAULT, Optionable, Statement};
use adbc_driver_manager::{ManagedConnection, ManagedDatabase, ManagedDriver, ManagedStatement};
use thallus_server::engine::{Defaults, EngineError, Vendor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::config::AdbcConfig;
use crate::error::{self, OpenError};
use crate::vendor;
use crate::work::Cancel;

/// The connections to a database, used and idle ones.
pub(crate) struct Pool {
    database: ManagedDatabase,
    vendor: Vendor,
    /// One permit for each connection that may exist.
    permits: Arc<Semaphore>,
    limit: usize,
    wait: Duration,
    /// Connections that are as good as new ones, with the catalog and schema that they were given.
    idle: Mutex<Vec<(Defaults, ManagedConnection)>>,
}

/// The right to have a connection, until it is dropped.
pub(crate) type Permit = OwnedSemaphorePermit;

impl Pool {
    /// Loads the driver, opens the database and makes a first connection.
    pub(crate) fn open(config: &AdbcConfig) -> Result<Self, OpenError> {
        if config.driver.is_empty() {
            return Err(OpenError::NoDriver);
        }
        if config.max_connections == 0 {
            return Err(OpenError::NoConnections);
        }
        let mut driver =
            load(config).map_err(|e| OpenError::Driver { driver: config.driver.clone(), source: e.into() })?;
        let refused = |e: Error| OpenError::Database { driver: config.driver.clone(), source: e.into() };
        let uri = config.uri.iter().map(|uri| (OptionDatabase::Uri, OptionValue::from(uri.as_str())));
        let others = config
            .options
            .iter()
            .map(|(key, value)| (OptionDatabase::from(key.as_str()), OptionValue::from(value.as_str())));
        let database = driver.new_database_with_opts(uri.chain(others)).map_err(refused)?;
        let mut first = database.new_connection().map_err(refused)?;
        let vendor = vendor::of(&first);
        begin(&mut first, &vendor).map_err(refused)?;
        let limit = config.max_connections.min(Semaphore::MAX_PERMITS);
        Ok(Pool {
            database,
            vendor,
            permits: Arc::new(Semaphore::new(limit)),
            limit,
            wait: config.connection_wait.into(),
            idle: Mutex::new(vec![(Defaults::default(), first)]),
        })
    }

    pub(crate) fn vendor(&self) -> &Vendor {
        &self.vendor
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Defaults, ManagedConnection)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the idle connection that was made last, if there is one. It blocks.
    pub(crate) fn with_idle<T>(&self, work: impl FnOnce(&ManagedConnection) -> T) -> Option<T> {
        let connection = self.idle().last().map(|(_, connection)| connection.clone());
        connection.map(|connection| work(&connection))
    }

    /// Waits for the right to have a connection.
    ///
    /// # Errors
    /// All connections are in use for too long.
    pub(crate) async fn permit(&self) -> Result<Permit, EngineError> {
        match timeout(self.wait, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_closed)) => Err(EngineError::Internal { message: "the engine is closed".to_owned() }),
            Err(_) => Err(EngineError::ResourcesExhausted {
                message: format!(
                    "all {} connections to the database were in use for {} s (adbc.max_connections, \
                     adbc.connection_wait); try again when fewer statements run",
                    self.limit,
                    self.wait.as_secs_f32()
                ),
            }),
        }
    }

    /// A connection with this catalog and schema. It blocks.
    ///
    /// # Errors
    /// The driver's.
    pub(crate) fn connection(self: &Arc<Self>, permit: Permit, defaults: &Defaults) -> Result<Lease, EngineError> {
        let unused = {
            let mut idle = self.idle();
            let at = idle.iter().rposition(|(of, _)| of == defaults);
            let in_use = self.limit - self.permits.available_permits();
            match at {
                Some(at) => Ok(idle.swap_remove(at).1),
                // The least recently used one makes room.
                None => Err((idle.len() + in_use > self.limit && !idle.is_empty()).then(|| idle.remove(0))),
            }
        };
        let connection = match unused {
            Ok(connection) => connection,
            Err(superfluous) => {
                drop(superfluous);
                self.connect(defaults).map_err(|e| error::of_driver(&e))?
            }
        };
        Ok(Lease::new(self, connection, defaults, permit))
    }

    /// A connection that no statement has used.
    ///
    /// # Errors
    /// The driver's.
    pub(crate) fn new_connection(self: &Arc<Self>, permit: Permit, defaults: &Defaults) -> Result<Lease, EngineError> {
        let connection = self.connect(defaults).map_err(|e| error::of_driver(&e))?;
        Ok(Lease::new(self, connection, defaults, permit))
    }

    fn connect(&self, defaults: &Defaults) -> DriverResult<ManagedConnection> {
        let mut connection = self.database.new_connection()?;
        begin(&mut connection, &self.vendor)?;
        let names = [
            (OptionConnection::CurrentCatalog, &defaults.catalog),
            (OptionConnection::CurrentSchema, &defaults.schema),
        ];
        for (option, name) in names {
            let Some(name) = name else { continue };
            // Some drivers can tell their catalog and not change it.
            let is_set = || connection.get_option_string(option.clone()).is_ok_and(|current| current == *name);
            if !is_set() {
                connection.set_option(option, OptionValue::from(name.as_str()))?;
            }
        }
        Ok(connection)
    }
}

fn load(config: &AdbcConfig) -> DriverResult<ManagedDriver> {
    let load = |version| {
        let entrypoint = config.entrypoint().map(str::as_bytes);
        ManagedDriver::load_from_name(&config.driver, entrypoint, version, LOAD_FLAG_DEFAULT, None)
    };
    load(AdbcVersion::V110).or_else(|e| match error::is_missing(&e) {
        true => load(AdbcVersion::V100),
        false => Err(e),
    })
}

/// Prepares a new connection.
fn begin(connection: &mut ManagedConnection, vendor: &Vendor) -> DriverResult<()> {
    vendor::begin(vendor).map_or(Ok(()), |sql| run(connection, sql))
}

/// Runs a statement of the engine itself.
fn run(connection: &mut ManagedConnection, sql: &str) -> DriverResult<()> {
    let mut statement = connection.new_statement()?;
    statement.set_sql_query(sql)?;
    statement.execute()?.try_for_each(|batch| batch.map(drop)).map_err(Error::from)
}

/// A connection in use. It is closed when this is dropped, unless it is given back.
pub(crate) struct Lease {
    pool: Arc<Pool>,
    connection: ManagedConnection,
    defaults: Defaults,
    in_transaction: bool,
    /// False after a transaction: the driver begins the next one at once.
    commits_itself: bool,
    /// Dropped last: until then the connection counts.
    _permit: Permit,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.in_transaction {
            // A driver that cannot roll back does so when its connection is closed, next.
            let _closed = self.connection.rollback();
        }
    }
}

impl Lease {
    fn new(pool: &Arc<Pool>, connection: ManagedConnection, defaults: &Defaults, permit: Permit) -> Self {
        let (pool, defaults) = (Arc::clone(pool), defaults.clone());
        Lease { pool, connection, defaults, in_transaction: false, commits_itself: true, _permit: permit }
    }

    pub(crate) fn connection(&mut self) -> &mut ManagedConnection {
        &mut self.connection
    }

    /// A new statement, which cancellations reach.
    ///
    /// # Errors
    /// The driver's, or the work is cancelled.
    pub(crate) fn statement(&mut self, cancel: &Cancel) -> Result<ManagedStatement, EngineError> {
        let statement = self.connection.new_statement().map_err(|e| self.failed(&e))?;
        cancel.arm(&self.connection, &statement);
        cancel.check()?;
        Ok(statement)
    }

    /// The engine's error for a driver's error. If the database was lost, so are the idle connections.
    pub(crate) fn failed(&self, error: &Error) -> EngineError {
        if error::is_of_connection(error) {
            let lost = std::mem::take(&mut *self.pool.idle());
            drop(lost);
        }
        error::of_driver(error)
    }

    /// Begins a transaction, which is rolled back unless it is committed. Afterwards the connection is not used again.
    ///
    /// # Errors
    /// The driver has no transactions.
    pub(crate) fn begin(&mut self, what: &str) -> Result<(), EngineError> {
        let begun = self.connection.set_option(OptionConnection::AutoCommit, OptionValue::from(false));
        begun.map_err(|e| match error::is_missing(&e) {
            true => EngineError::Unsupported {
                message: format!("{what}: the driver has no transactions, so a failure could leave a part of it"),
            },
            false => self.failed(&e),
        })?;
        (self.in_transaction, self.commits_itself) = (true, false);
        let begun = vendor::begin_writing(&self.pool.vendor).iter().try_for_each(|sql| run(&mut self.connection, sql));
        begun.map_err(|e| self.failed(&e))
    }

    /// # Errors
    /// The driver's: the changes of the transaction are lost.
    pub(crate) fn commit(&mut self) -> Result<(), EngineError> {
        if let Some(sql) = vendor::check_of_transaction(&self.pool.vendor) {
            run(&mut self.connection, sql).map_err(|e| match self.failed(&e) {
                EngineError::Execution { message } => EngineError::Constraint {
                    message: format!(
                        "the rows cannot be stored; probably one breaks a constraint such as a primary key ({message})"
                    ),
                },
                other => other,
            })?;
        }
        self.connection.commit().map_err(|e| self.failed(&e))?;
        self.in_transaction = false;
        Ok(())
    }

    /// Keeps the connection for the next statement, if it can be made as good as a new one.
    pub(crate) fn give_back(mut self, cancel: &Cancel) {
        // Another client's statement must not be cancelled.
        if !self.commits_itself || !cancel.disarm() {
            return;
        }
        if let Some(sql) = vendor::reset(&self.pool.vendor) {
            // A reset also resets the schema.
            if self.defaults != Defaults::default() || run(&mut self.connection, sql).is_err() {
                return;
            }
        }
        self.pool.idle().push((self.defaults.clone(), self.connection.clone()));
    }
}
