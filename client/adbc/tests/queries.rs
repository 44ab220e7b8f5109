//! Queries through the C interface: results, errors in the middle of them, cancelling, lifetimes.

mod support;

use std::time::Duration;

use adbc_core::error::Status;
use adbc_core::options::{OptionConnection, OptionDatabase, OptionStatement};
use adbc_core::{Connection, Database, Driver, Optionable, Statement};
use arrow::array::RecordBatchReader;
use arrow::datatypes::Schema;
use support::engine::{CHANGE, TestEngine};
use support::{World, all, driver, sqlstate, statement};
use thallus_scripted_engine::{Script, ScriptedEngine, synthetic_batch, synthetic_schema};
use thallus_server::engine::EngineError;

fn world() -> World {
    let broken = EngineError::Execution { message: "division by zero".to_owned() };
    World::new(TestEngine::of(
        ScriptedEngine::new()
            .with_query("three", Script::synthetic(3, 100))
            .with_query("none", Script::new(synthetic_schema()))
            .with_query("nothing", Script::new(Schema::empty().into()))
            .with_query("fails", Script::synthetic(2, 10).fail(broken))
            .with_query("hangs", Script::synthetic(1, 10).hang())
            .with_query(
                "slow",
                Script::synthetic(1, 10).sleep(Duration::from_millis(20)).batch(synthetic_batch(1, 10)),
            ),
    ))
}

#[test]
fn a_result_has_its_batches_in_order() {
    let world = world();
    let mut statement = world.statement("three");
    for _ in 0..2 {
        let reader = statement.execute().unwrap();
        assert_eq!(reader.schema(), synthetic_schema());
        assert_eq!(all(reader), (0..3).map(|number| synthetic_batch(number, 100)).collect::<Vec<_>>());
    }
    assert_eq!(all(world.statement("none").execute().unwrap()), []);
    assert_eq!(statement.execute_update().unwrap(), None);
}

#[test]
fn a_result_outlives_its_statement_and_its_connection() {
    let world = world();
    let reader = world.statement("slow").execute().unwrap();
    assert_eq!(world.server.connections(), 1);
    assert_eq!(all(reader).len(), 2);
    world.is_at_rest();
}

#[test]
fn a_dropped_result_ends_its_query() {
    let world = world();
    let mut connection = world.connection();
    let mut reader = statement(&mut connection, "hangs").execute().unwrap();
    assert!(reader.next().unwrap().is_ok());
    drop(reader);
    while world.engine.scripted.running() > 0 {
        std::thread::yield_now();
    }
    assert_eq!(all(statement(&mut connection, "three").execute().unwrap()).len(), 3);
}

#[test]
fn results_of_several_statements_are_read_at_a_time() {
    let world = world();
    let mut connection = world.connection();
    let mut first = statement(&mut connection, "three").execute().unwrap();
    let mut second = statement(&mut connection, "slow").execute().unwrap();
    assert_eq!(first.next().unwrap().unwrap(), synthetic_batch(0, 100));
    assert_eq!(second.next().unwrap().unwrap(), synthetic_batch(0, 10));
    assert_eq!(first.next().unwrap().unwrap(), synthetic_batch(1, 100));
    assert_eq!(second.next().unwrap().unwrap(), synthetic_batch(1, 10));
}

#[test]
fn errors_before_the_first_row_have_status_and_sqlstate() {
    let world = world();
    let unknown = world.statement("SELECT * FROM nowhere").execute().err().unwrap();
    assert_eq!((unknown.status, sqlstate(&unknown).as_str()), (Status::NotFound, "42P01"));
    assert!(unknown.message.contains("SELECT * FROM nowhere"), "{unknown}");
    let details = unknown.details.unwrap();
    assert_eq!(details, [("adbc.thallus.retryable".to_owned(), b"false".to_vec())]);
    let uri = [(OptionDatabase::Uri, "thallus://127.0.0.1:1?fabric=none".into())];
    let refused = driver().new_database_with_opts(uri).unwrap().new_connection().err().unwrap();
    assert_eq!((refused.status, sqlstate(&refused).as_str()), (Status::IO, "08001"));
    assert!(refused.message.contains("127.0.0.1:1"), "{refused}");
}

#[test]
fn a_statement_without_a_query_is_in_the_wrong_state() {
    let world = world();
    let mut statement = world.connection().new_statement().unwrap();
    assert_eq!(statement.execute().err().unwrap().status, Status::InvalidState);
    assert_eq!(statement.prepare().unwrap_err().status, Status::InvalidState);
    assert_eq!(statement.execute_schema().unwrap_err().status, Status::InvalidState);
    assert_eq!(statement.set_substrait_plan(b"plan").unwrap_err().status, Status::NotImplemented);
}

#[test]
fn a_cancel_from_another_thread_ends_a_statement_and_not_its_connection() {
    let world = world();
    let mut connection = world.connection();
    let mut hanging = statement(&mut connection, "hangs");
    let mut reader = hanging.execute().unwrap();
    assert!(reader.next().unwrap().is_ok());
    let cancel = hanging.get_cancel_handle();
    let (error, ()) = std::thread::scope(|scope| {
        let waiting = scope.spawn(move || reader.next().unwrap().unwrap_err());
        // Until the reader waits, a cancel concerns it as well: it runs since its execution.
        cancel.try_cancel().unwrap();
        (waiting.join().unwrap(), ())
    });
    assert!(error.to_string().contains("cancelled by the application"), "{error}");
    assert_eq!(all(statement(&mut connection, "three").execute().unwrap()).len(), 3);
    while world.engine.scripted.running() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_cancel_of_a_connection_ends_all_its_results() {
    let world = world();
    let mut connection = world.connection();
    let mut readers = [0, 1].map(|_| statement(&mut connection, "hangs").execute().unwrap());
    connection.get_cancel_handle().try_cancel().unwrap();
    for reader in &mut readers {
        assert!(reader.next().unwrap().is_err());
        assert!(reader.next().is_none());
    }
    assert_eq!(all(statement(&mut connection, "three").execute().unwrap()).len(), 3);
}

#[test]
fn statements_that_change_something_report_rows_and_have_no_result() {
    let world = world();
    let mut changing = world.statement(CHANGE);
    assert_eq!(changing.execute_update().unwrap(), Some(7));
    let reader = changing.execute().unwrap();
    assert_eq!(reader.schema().fields().len(), 0);
    assert_eq!(all(reader), []);
}

#[test]
fn progress_counts_received_rows() {
    let world = world();
    let mut statement = world.statement("three");
    let progress = |statement: &adbc_driver_manager::ManagedStatement| {
        let get = |option| statement.get_option_double(option).unwrap();
        (get(OptionStatement::Progress), get(OptionStatement::MaxProgress))
    };
    let mut reader = statement.execute().unwrap();
    reader.next().unwrap().unwrap();
    assert_eq!(progress(&statement), (100.0, 0.0));
    assert_eq!(all(reader).len(), 2);
    assert_eq!(progress(&statement), (300.0, 300.0));
}

#[test]
fn partitions_are_read_by_another_connection() {
    let world = world();
    let mut statement = world.statement("SELECT * FROM \"numbers\"");
    let described = statement.execute_partitions().unwrap();
    assert_eq!((described.partitions.len(), described.rows_affected), (1, -1));
    assert_eq!(described.schema, *support::engine::table_schema());
    // The query runs when the partition is read; this one exists only as a description.
    let error = world.connection().read_partition(&described.partitions[0]).err().unwrap();
    assert_eq!(error.status, Status::NotFound);
    let garbage = world.connection().read_partition(b"garbage").err().unwrap();
    assert_eq!(garbage.status, Status::InvalidArguments);
    assert_eq!(world.statement(CHANGE).execute_partitions().unwrap_err().status, Status::NotImplemented);
}

#[test]
fn options_are_known_unknown_or_refused() {
    let world = world();
    let mut connection = world.connection();
    let unknown = || OptionConnection::Other("x".into());
    assert_eq!(connection.set_option(unknown(), "y".into()).unwrap_err().status, Status::NotImplemented);
    assert_eq!(connection.get_option_string(unknown()).unwrap_err().status, Status::NotFound);
    assert_eq!(connection.get_option_bytes(unknown()).unwrap_err().status, Status::NotFound);
    assert_eq!(connection.get_option_int(unknown()).unwrap_err().status, Status::NotFound);
    assert_eq!(connection.get_option_double(unknown()).unwrap_err().status, Status::NotFound);
    let refused = connection.set_option(OptionConnection::AutoCommit, "false".into()).unwrap_err();
    assert_eq!(refused.status, Status::NotImplemented);
    connection.set_option(OptionConnection::AutoCommit, "true".into()).unwrap();
    assert_eq!(connection.get_option_string(OptionConnection::AutoCommit).unwrap(), "true");
    assert_eq!(connection.commit().unwrap_err().status, Status::InvalidState);
    assert_eq!(connection.rollback().unwrap_err().status, Status::InvalidState);
    connection.set_option(OptionConnection::Other("adbc.thallus.batch_rows".into()), 10.into()).unwrap();
    let mut statement = statement(&mut connection, "three");
    assert_eq!(all(statement.execute().unwrap()).len(), 30);
    let statement_option = |name: &str| OptionStatement::Other(name.into());
    assert_eq!(statement.get_option_int(statement_option("adbc.thallus.batch_rows")).unwrap(), 10);
    assert_eq!(statement.set_option(statement_option("x"), 1.into()).unwrap_err().status, Status::NotImplemented);
    assert_eq!(statement.get_option_string(statement_option("x")).unwrap_err().status, Status::NotFound);
    statement.set_option(OptionStatement::Incremental, "false".into()).unwrap();
    let incremental = statement.set_option(OptionStatement::Incremental, "true".into()).unwrap_err();
    assert_eq!(incremental.status, Status::NotImplemented);
}

#[test]
fn a_deadline_ends_a_query() {
    let world = world();
    let mut statement = world.statement("hangs");
    statement.set_option(OptionStatement::Other("adbc.thallus.deadline".into()), "50ms".into()).unwrap();
    let mut reader = statement.execute().unwrap();
    assert!(reader.next().unwrap().is_ok());
    assert!(reader.next().unwrap().is_err());
}
