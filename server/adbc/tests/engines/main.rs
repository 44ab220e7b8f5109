//! The engine over real databases: DuckDB, SQLite, PostgreSQL.

mod support;

mod catalog;
mod sessions;
mod statements;
mod uploads;
