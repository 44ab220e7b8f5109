//! Describing a statement without running it.

use std::sync::Arc;

use adbc_core::Statement as _;
use arrow_schema::{Field, Schema};
use thallus_server::engine::{Description, EngineError, QueryRequest, changes_schema};

use crate::error::is_missing;
use crate::pool::Pool;
use crate::text::{Kind, Statement, named_parameters};
use crate::work;

/// The result and the parameters of a statement.
pub(crate) async fn describe(pool: &Arc<Pool>, query: QueryRequest) -> Result<Description, EngineError> {
    let text = Statement::of(&query.sql)?;
    if text.has_parts {
        let message = "a description of a statement that contains other statements".to_owned();
        return Err(EngineError::Unsupported { message });
    }
    let permit = pool.permit().await?;
    let pool = Arc::clone(pool);
    work::run(move |cancel| {
        let mut lease = pool.connection(permit, &query.defaults)?;
        let mut statement = lease.statement(cancel)?;
        let unsupported = |what: &str| EngineError::Unsupported {
            message: format!("the driver cannot tell {what} of a statement without running it"),
        };
        statement.set_sql_query(&query.sql).map_err(|e| lease.failed(&e))?;
        statement.prepare().map_err(|e| lease.failed(&e))?;
        let parameters = statement.get_parameter_schema().map_err(|e| match is_missing(&e) {
            true => unsupported("the parameters"),
            false => lease.failed(&e),
        })?;
        let result = match text.kind {
            Kind::Change | Kind::Definition => changes_schema(),
            Kind::Select | Kind::Rows | Kind::Returning => {
                let schema = statement.execute_schema().map_err(|e| match is_missing(&e) {
                    true => unsupported("the result"),
                    false => lease.failed(&e),
                })?;
                match text.kind {
                    Kind::Rows if schema.fields().is_empty() => changes_schema(),
                    _ => Arc::new(schema),
                }
            }
        };
        drop(statement);
        // The statement was not run.
        lease.give_back(cancel);
        Ok(Description { result, parameters: Arc::new(named(&parameters, &query.sql)) })
    })
    .await
}

/// The parameters with the names `$1` and so on, or the names in the text, as of every engine. Drivers number them in
/// ways of their own.
fn named(parameters: &Schema, sql: &str) -> Schema {
    let names = named_parameters(sql);
    let field = |(index, field): (usize, &Arc<Field>)| {
        let name = match names.len() == parameters.fields().len() {
            true => names[index].clone(),
            false => (index + 1).to_string(),
        };
        Field::new(format!("${name}"), field.data_type().clone(), true)
    };
    Schema::new(parameters.fields().iter().enumerate().map(field).collect::<Vec<_>>())
}
