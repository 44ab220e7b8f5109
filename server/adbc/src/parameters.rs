//! Parameters of statements. ADBC binds them by position.

use adbc_core::Statement;
use adbc_driver_manager::ManagedStatement;
use arrow_array::RecordBatch;
use thallus_server::engine::{EngineError, QueryRequest};

use crate::text::named_parameters;

fn wrong(message: String) -> EngineError {
    EngineError::Parameters { message }
}

/// The parameters of a request, in the order of the statement.
///
/// # Errors
/// There is no row, or no column for a name.
pub(crate) fn of(query: &QueryRequest) -> Result<Option<RecordBatch>, EngineError> {
    let Some(given) = &query.parameters else { return Ok(None) };
    if given.num_rows() == 0 {
        return Err(wrong("there is no row of parameters".to_owned()));
    }
    if given.num_columns() == 0 {
        return Ok(None);
    }
    let names = named_parameters(&query.sql);
    if names.is_empty() {
        return Ok(Some(given.clone()));
    }
    let schema = given.schema();
    let column = |name: &String| {
        let named = |field: &str| field.trim_start_matches('$') == name;
        let at = schema.fields().iter().position(|field| named(field.name()));
        at.ok_or_else(|| wrong(format!("no value was given for the parameter ${name}")))
    };
    let order = names.iter().map(column).collect::<Result<Vec<_>, _>>()?;
    if order.len() != given.num_columns() {
        return Err(wrong_number(order.len(), given.num_columns()));
    }
    given.project(&order).map(Some).map_err(|e| wrong(e.to_string()))
}

/// Compares the number of parameters, if the driver tells it.
///
/// # Errors
/// The numbers differ. Some drivers take too many values without an error.
pub(crate) fn check(statement: &ManagedStatement, given: &RecordBatch) -> Result<(), EngineError> {
    match statement.get_parameter_schema() {
        Ok(expected) if expected.fields().len() != given.num_columns() => {
            Err(wrong_number(expected.fields().len(), given.num_columns()))
        }
        // A driver that cannot tell reports the difference itself.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn wrong_number(expected: usize, given: usize) -> EngineError {
    wrong(format!("the statement has {expected} parameters, {given} were given"))
}
