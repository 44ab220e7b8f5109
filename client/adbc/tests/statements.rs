//! Parameters, descriptions, ingestion and the catalog, through the C interface.

mod support;

use std::collections::HashSet;
use std::sync::Arc;

use adbc_core::error::Status;
use adbc_core::options::{
    InfoCode, IngestMode as AdbcMode, ObjectDepth, OptionConnection, OptionStatement, OptionValue,
};
use adbc_core::{Connection, Optionable, Statement, schemas};
use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, RecordBatchIterator, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Schema, UInt32Type};
use arrow::error::ArrowError;
use support::engine::{CHANGE, ECHO, TestEngine, table_schema};
use support::{World, all, sqlstate};
use thallus_server::engine::{Depth, IngestMode};

fn world() -> World {
    World::new(TestEngine::default())
}

fn rows(count: i64) -> RecordBatch {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..count));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..count).map(|n| format!("text {n:050}"))));
    RecordBatch::try_from_iter([("0", numbers), ("1", texts)]).unwrap()
}

#[test]
fn each_bound_row_is_an_execution_and_the_results_follow_each_other() {
    let world = world();
    let mut statement = world.statement(ECHO);
    let bound = rows(5000);
    statement.bind(bound.clone()).unwrap();
    let reader = statement.execute().unwrap();
    let result = all(reader);
    assert_eq!(concat_batches(&bound.schema(), &result).unwrap(), bound);
    let requests = world.engine.parameter_rows();
    assert!(requests.len() > 1 && requests.iter().sum::<usize>() == 5000, "{requests:?}");
}

#[test]
fn a_bound_stream_is_read_as_it_is_executed() {
    let world = world();
    let mut statement = world.statement(ECHO);
    let batch = rows(3);
    let bound = RecordBatchIterator::new([batch.clone(), batch.slice(0, 0), batch.clone()].map(Ok), batch.schema());
    statement.bind_stream(Box::new(bound)).unwrap();
    assert_eq!(all(statement.execute().unwrap()), [batch.clone(), batch]);
    assert_eq!(world.engine.parameter_rows(), [3, 3]);
}

#[test]
fn counts_of_changed_rows_add_up() {
    let world = world();
    let mut statement = world.statement(CHANGE);
    statement.bind(rows(5000)).unwrap();
    assert_eq!(statement.execute_update().unwrap(), Some(5000));
    statement.bind(rows(0)).unwrap();
    assert_eq!(statement.execute_update().unwrap(), Some(0));
    // Parameters are for one execution.
    assert_eq!(statement.execute_update().unwrap(), Some(7));
}

#[test]
fn no_bound_rows_give_no_rows_of_the_result_schema() {
    let world = world();
    let mut statement = world.statement(ECHO);
    statement.bind(rows(0)).unwrap();
    let reader = statement.execute().unwrap();
    assert_eq!(arrow::array::RecordBatchReader::schema(&reader).field(0).name(), "a");
    assert_eq!(all(reader), []);
}

#[test]
fn statements_are_described_without_running_them() {
    let world = world();
    let mut statement = world.statement(ECHO);
    statement.prepare().unwrap();
    let parameters = statement.get_parameter_schema().unwrap();
    let kinds: Vec<_> = parameters.fields().iter().map(|field| field.data_type().clone()).collect();
    assert_eq!(kinds, [DataType::Int64, DataType::Null]);
    assert_eq!(statement.execute_schema().unwrap().field(0).name(), "a");
    assert_eq!(world.engine.queries.lock().unwrap().len(), 1, "the description is asked for once");
    statement.set_sql_query(CHANGE).unwrap();
    assert_eq!(statement.execute_schema().unwrap(), Schema::empty());
    statement.set_sql_query("nonsense").unwrap();
    assert_eq!(statement.execute_schema().unwrap_err().status, Status::NotFound);
}

fn ingest(world: &World, table: &str, mode: AdbcMode) -> adbc_core::error::Result<Option<i64>> {
    let mut statement = world.connection().new_statement()?;
    statement.set_option(OptionStatement::TargetTable, table.into())?;
    statement.set_option(OptionStatement::IngestMode, mode.into())?;
    statement.bind(rows(10))?;
    statement.execute_update()
}

#[test]
fn bound_rows_are_written_in_the_mode_and_schema_that_are_set() {
    let world = world();
    let modes = [
        (AdbcMode::Create, IngestMode::Create),
        (AdbcMode::Append, IngestMode::Append),
        (AdbcMode::Replace, IngestMode::Replace),
        (AdbcMode::CreateAppend, IngestMode::CreateAppend),
    ];
    for (mode, expected) in modes {
        assert_eq!(ingest(&world, "t \"x\"", mode).unwrap(), Some(10));
        let (request, batches) = world.engine.uploads.lock().unwrap().pop().unwrap();
        assert_eq!((request.table.as_str(), request.mode), ("t \"x\"", expected));
        assert_eq!(batches, [rows(10)]);
    }
    let mut statement = world.connection().new_statement().unwrap();
    for (option, value) in [
        (OptionStatement::TargetTable, "t"),
        (OptionStatement::TargetCatalog, "c"),
        (OptionStatement::TargetDbSchema, "s"),
    ] {
        statement.set_option(option, value.into()).unwrap();
    }
    let stream = RecordBatchIterator::new([rows(1), rows(2)].map(Ok), rows(1).schema());
    statement.bind_stream(Box::new(stream)).unwrap();
    assert_eq!(statement.execute_update().unwrap(), Some(3));
    let (request, batches) = world.engine.uploads.lock().unwrap().pop().unwrap();
    assert_eq!((request.mode, batches.len()), (IngestMode::Create, 2));
    assert_eq!((request.defaults.catalog.as_deref(), request.defaults.schema.as_deref()), (Some("c"), Some("s")));
}

#[test]
fn failed_ingestions_have_the_status_that_adbc_names_and_write_nothing() {
    let world = world();
    let cases = [
        ("taken", AdbcMode::Create, Status::AlreadyExists, "42P07"),
        ("taken", AdbcMode::Append, Status::AlreadyExists, "42000"),
        ("absent", AdbcMode::Append, Status::NotFound, "42P01"),
    ];
    for (table, mode, status, state) in cases {
        let error = ingest(&world, table, mode).unwrap_err();
        assert_eq!((error.status, sqlstate(&error).as_str()), (status, state), "{error}");
    }
    let mut statement = world.connection().new_statement().unwrap();
    statement.set_option(OptionStatement::TargetTable, "t".into()).unwrap();
    assert_eq!(statement.execute_update().unwrap_err().status, Status::InvalidState);
    let broken = [Ok(rows(1)), Err(ArrowError::ComputeError("the disk is gone".into()))];
    statement.bind_stream(Box::new(RecordBatchIterator::new(broken, rows(1).schema()))).unwrap();
    let error = statement.execute_update().unwrap_err();
    assert!(error.message.contains("the disk is gone") && error.message.contains("nothing was written"), "{error}");
    statement.bind(rows(1)).unwrap();
    statement.set_option(OptionStatement::Temporary, "true".into()).unwrap();
    assert_eq!(statement.execute_update().unwrap_err().status, Status::NotImplemented);
    assert_eq!(world.engine.uploads.lock().unwrap().len(), 0);
}

#[test]
fn objects_are_listed_in_the_shape_of_adbc() {
    let world = world();
    let connection = world.connection();
    let found = all(connection.get_objects(ObjectDepth::All, None, Some("%"), None, None, Some("n%")).unwrap());
    assert_eq!(found[0].schema(), *schemas::GET_OBJECTS_SCHEMA);
    assert_eq!(found[0].column(0).as_string::<i32>().value(0), "main");
    let schemas = found[0].column(1).as_list::<i32>().value(0);
    let tables = schemas.as_struct().column(1).as_list::<i32>().value(0);
    let columns = tables.as_struct().column(2).as_list::<i32>().value(0);
    let names = columns.as_struct().column(0).as_string::<i32>();
    assert_eq!(names.iter().flatten().collect::<Vec<_>>(), ["n", "name \"quoted\""]);
    let types = Some(vec!["view", "table"]);
    let _tables = connection.get_objects(ObjectDepth::Tables, Some("ma_n"), None, Some("num%"), types, None).unwrap();
    let request = world.engine.listed.lock().unwrap().pop().unwrap();
    assert_eq!((request.depth, request.catalog.as_deref()), (Depth::Tables, Some("ma_n")));
    assert_eq!(request.table.as_deref(), Some("num%"));
    assert_eq!(request.kinds, Some(vec!["view".to_owned(), "table".to_owned()]));
    let none = all(connection.get_objects(ObjectDepth::All, Some(""), None, None, None, None).unwrap());
    assert_eq!(none.iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
    let types = all(connection.get_table_types().unwrap());
    assert_eq!(types[0].column(0).as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["table", "view"]);
}

#[test]
fn the_schema_of_a_table_is_found_by_its_quoted_name() {
    let world = world();
    let connection = world.connection();
    assert_eq!(connection.get_table_schema(None, None, "numbers").unwrap(), *table_schema());
    connection.get_table_schema(Some("ma\"in"), Some("public"), "numbers").unwrap();
    let sql = world.engine.queries.lock().unwrap().pop().unwrap().sql;
    assert_eq!(sql, "SELECT * FROM \"ma\"\"in\".\"public\".\"numbers\"");
    assert_eq!(connection.get_table_schema(None, None, "absent").unwrap_err().status, Status::NotFound);
}

#[test]
fn the_current_catalog_and_schema_are_those_that_are_set_or_the_only_ones() {
    let world = world();
    let mut connection = world.connection();
    let get =
        |connection: &adbc_driver_manager::ManagedConnection, option| connection.get_option_string(option).unwrap();
    assert_eq!(get(&connection, OptionConnection::CurrentCatalog), "main");
    assert_eq!(get(&connection, OptionConnection::CurrentSchema), "public");
    for (option, name) in [(OptionConnection::CurrentCatalog, "main"), (OptionConnection::CurrentSchema, "public")] {
        connection.set_option(option.clone(), name.into()).unwrap();
        let absent = connection.set_option(option, OptionValue::from("absent")).unwrap_err();
        assert_eq!(absent.status, Status::NotFound);
    }
    let mut statement = support::statement(&mut connection, CHANGE);
    statement.execute_update().unwrap();
    let defaults = world.engine.queries.lock().unwrap().pop().unwrap().defaults;
    assert_eq!((defaults.catalog.as_deref(), defaults.schema.as_deref()), (Some("main"), Some("public")));
}

#[test]
fn facts_and_statistics() {
    let world = world();
    let connection = world.connection();
    let codes = HashSet::from([InfoCode::VendorName, InfoCode::VendorVersion]);
    let info = all(connection.get_info(Some(codes)).unwrap());
    assert_eq!(info[0].column(0).as_primitive::<UInt32Type>().values().to_vec(), [0, 1]);
    let values = info[0].column(1).as_union();
    assert_eq!(values.value(0).as_string::<i32>().value(0), "Scripted");
    assert_eq!(values.value(1).as_string::<i32>().value(0), "1.2.3");
    assert_eq!(all(connection.get_statistic_names().unwrap()), []);
    let statistics = connection.get_statistics(None, None, Some("numbers"), true).err().unwrap();
    assert_eq!(statistics.status, Status::NotImplemented);
}
