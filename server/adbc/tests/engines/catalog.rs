//! Lists of objects, and the database's name.

use thallus_server::engine::{Depth, Engine, ObjectsRequest};

use crate::support::{Fixture, Kind, on_every_database};

on_every_database! {
    objects_are_listed,
    the_database_has_a_name,
}

async fn objects_are_listed(fixture: Fixture) {
    fixture.change("CREATE TABLE orders (a BIGINT, b VARCHAR(10))").await;
    fixture.change("CREATE TABLE order_line (a BIGINT)").await;
    fixture.change("CREATE VIEW v AS SELECT a FROM orders").await;
    let list = async |depth, table: Option<&str>, kind: Option<&str>| {
        let request = ObjectsRequest {
            depth,
            table: table.map(str::to_owned),
            kinds: kind.map(|kind| vec![kind.to_owned()]),
            ..ObjectsRequest::default()
        };
        let objects = fixture.engine.objects(request).await.unwrap();
        let tables = objects.iter().filter_map(|object| object.table.as_ref());
        let tables = tables.map(|table| match &table.columns {
            None => format!("{}:{}", table.name, table.kind),
            Some(columns) => format!("{}({})", table.name, columns.fields().len()),
        });
        (objects.len(), tables.collect::<Vec<_>>().join(" "))
    };
    assert_eq!(list(Depth::Tables, None, None).await.1, "order_line:table orders:table v:view");
    assert_eq!(list(Depth::Columns, None, Some("table")).await.1, "order_line(1) orders(2)");
    assert_eq!(list(Depth::Tables, Some("order\\_%"), None).await.1, "order_line:table");
    assert_eq!(list(Depth::Tables, Some("nothing"), None).await.1, "");
    for depth in [Depth::Catalogs, Depth::Schemas] {
        let (count, tables) = list(depth, None, None).await;
        assert!(count > 0 && tables.is_empty());
    }
    let others = ObjectsRequest { catalog: Some("no such catalog".to_owned()), ..ObjectsRequest::default() };
    assert!(fixture.engine.objects(others).await.unwrap().is_empty());
}

async fn the_database_has_a_name(fixture: Fixture) {
    let vendor = fixture.engine.vendor();
    let expected = match fixture.kind {
        Kind::Duckdb => "duckdb",
        Kind::Sqlite => "SQLite",
        Kind::Postgresql => "PostgreSQL",
    };
    assert_eq!(vendor.name, expected);
    assert!(!vendor.version.is_empty());
}
