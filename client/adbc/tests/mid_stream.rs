//! The error that ends a result reaches callers in C with its status and SQLSTATE.

mod support;

use std::ffi::{CStr, CString, c_void};
use std::ptr;

use adbc_core::constants::ADBC_STATUS_OK;
use adbc_core::error::{Error, Status};
use adbc_driver_thallus::ffi::AdbcDriverThallusInit;
use adbc_ffi::{FFI_AdbcConnection, FFI_AdbcDatabase, FFI_AdbcDriver, FFI_AdbcError, FFI_AdbcStatement};
use arrow::ffi::FFI_ArrowArray;
use arrow::ffi_stream::FFI_ArrowArrayStream;
use support::World;
use support::engine::{CHANGE, TestEngine};
use support::sqlstate;
use thallus_scripted_engine::{Script, ScriptedEngine};
use thallus_server::engine::EngineError;

/// Objects of a program in C.
struct Program {
    driver: FFI_AdbcDriver,
    error: FFI_AdbcError,
    database: FFI_AdbcDatabase,
    connection: FFI_AdbcConnection,
    statement: FFI_AdbcStatement,
}

impl Program {
    /// Connects, and executes a statement. Returns its stream and the number of rows that it changed.
    fn run(world: &World, sql: &str) -> (Box<Program>, FFI_ArrowArrayStream, i64) {
        let mut program = Box::new(Program {
            driver: FFI_AdbcDriver::default(),
            error: FFI_AdbcError::default(),
            database: FFI_AdbcDatabase::default(),
            connection: FFI_AdbcConnection::default(),
            statement: FFI_AdbcStatement::default(),
        });
        let Program { driver, error, database, connection, statement } = &mut *program;
        let (uri, sql) = (CString::new(world.uri()).unwrap(), CString::new(sql).unwrap());
        let (mut stream, mut rows) = (FFI_ArrowArrayStream::empty(), -2);
        // SAFETY: the calls of a program in C, in the order that ADBC requires, with objects that stay in place.
        unsafe {
            let into = ptr::from_mut(driver).cast::<c_void>();
            assert_eq!(AdbcDriverThallusInit(1_001_000, into, error), ADBC_STATUS_OK);
            let calls = [
                driver.DatabaseNew.unwrap()(database, error),
                driver.DatabaseSetOption.unwrap()(database, c"uri".as_ptr(), uri.as_ptr(), error),
                driver.DatabaseInit.unwrap()(database, error),
                driver.ConnectionNew.unwrap()(connection, error),
                driver.ConnectionInit.unwrap()(connection, database, error),
                driver.StatementNew.unwrap()(connection, statement, error),
                driver.StatementSetSqlQuery.unwrap()(statement, sql.as_ptr(), error),
                driver.StatementExecuteQuery.unwrap()(statement, &raw mut stream, &raw mut rows, error),
            ];
            assert_eq!(calls, [ADBC_STATUS_OK; 8]);
        }
        (program, stream, rows)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let Program { driver, error, database, connection, statement } = self;
        // SAFETY: the objects of this program, each released once.
        unsafe {
            driver.StatementRelease.unwrap()(statement, error);
            driver.ConnectionRelease.unwrap()(connection, error);
            driver.DatabaseRelease.unwrap()(database, error);
        }
    }
}

fn world() -> World {
    let broken = EngineError::Execution { message: "division by zero".to_owned() };
    World::new(TestEngine::of(
        ScriptedEngine::new()
            .with_query("fails", Script::synthetic(2, 10).fail(broken))
            .with_query("hangs", Script::synthetic(1, 10).hang()),
    ))
}

/// Reads until an error. Returns the number of batches, the error number, the text of the stream and the ADBC error.
fn read(program: &Program, stream: &mut FFI_ArrowArrayStream) -> (usize, i32, String, Error, u8) {
    let mut batches = 0;
    loop {
        let mut array = FFI_ArrowArray::empty();
        // SAFETY: a stream that is not released, and room for an array.
        let code = unsafe { stream.get_next.unwrap()(stream, &raw mut array) };
        if code != 0 {
            let mut status = u8::MAX;
            // SAFETY: as above; the text and the error live as long as the stream.
            let (text, error) = unsafe {
                let text = CStr::from_ptr(stream.get_last_error.unwrap()(stream)).to_str().unwrap().to_owned();
                let error = program.driver.ErrorFromArrayStream.unwrap()(stream, &raw mut status);
                (text, Error::try_from(error.as_ref().unwrap()).unwrap())
            };
            return (batches, code, text, error, status);
        }
        assert!(!array.is_released(), "the result has ended without an error");
        batches += 1;
    }
}

#[test]
fn an_error_of_the_query_keeps_its_status_sqlstate_and_text() {
    let world = world();
    let (program, mut stream, rows) = Program::run(&world, "fails");
    assert_eq!(rows, -1);
    let (batches, code, text, error, status) = read(&program, &mut stream);
    assert_eq!((batches, code, status), (2, libc::EINVAL, u8::from(Status::InvalidData)));
    assert_eq!((text.as_str(), sqlstate(&error).as_str()), (error.message.as_str(), "22000"));
    assert!(text.ends_with("division by zero"), "{text}");
}

#[test]
fn a_cancelled_result_ends_in_ecanceled() {
    let world = world();
    let (mut program, mut stream, _) = Program::run(&world, "hangs");
    let Program { driver, error, statement, .. } = &mut *program;
    // SAFETY: a statement of this program.
    assert_eq!(unsafe { driver.StatementCancel.unwrap()(statement, error) }, ADBC_STATUS_OK);
    let (_, code, _, error, status) = read(&program, &mut stream);
    assert_eq!((code, status), (libc::ECANCELED, u8::from(Status::Cancelled)));
    assert_eq!(sqlstate(&error), "57014");
}

#[test]
fn the_server_that_goes_away_is_an_error_of_the_connection() {
    let world = world();
    let (program, mut stream, _) = Program::run(&world, "hangs");
    drop(world);
    let (_, code, _, error, status) = read(&program, &mut stream);
    assert_eq!((code, status), (libc::EIO, u8::from(Status::IO)));
    assert_eq!(sqlstate(&error), "08006");
}

#[test]
fn a_changing_statement_reports_its_rows_beside_its_empty_result() {
    let world = world();
    let (_program, mut stream, rows) = Program::run(&world, CHANGE);
    assert_eq!(rows, 7);
    let mut array = FFI_ArrowArray::empty();
    // SAFETY: a stream that is not released, and room for an array.
    assert_eq!(unsafe { stream.get_next.unwrap()(&raw mut stream, &raw mut array) }, 0);
    assert!(array.is_released());
}
