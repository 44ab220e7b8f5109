//! Parameters of statements: `$1`, `$2` and `?` by position, `$name` by name.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::metadata::{FieldMetadata, ScalarAndMetadata};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::error;
use crate::engine::EngineError;

/// Numbers the parameters `?` from left to right: DataFusion knows `$1` only.
pub(super) fn number(tokens: &mut [TokenWithSpan]) -> Result<(), EngineError> {
    let is_mark = |token: &TokenWithSpan| matches!(&token.token, Token::Placeholder(text) if text == "?");
    let marks = tokens.iter().filter(|token| is_mark(token)).count();
    let all = tokens.iter().filter(|token| matches!(&token.token, Token::Placeholder(_))).count();
    if marks > 0 && marks != all {
        let message = "the statement has both `?` and `$` parameters; write all of them in one way".to_owned();
        return Err(EngineError::Syntax { message });
    }
    for (index, token) in tokens.iter_mut().filter(|token| is_mark(token)).enumerate() {
        token.token = Token::Placeholder(format!("${}", index + 1));
    }
    Ok(())
}

/// The parameters of a plan.
enum Parameters {
    /// As many as the highest number. A type is `None` if it cannot be told from the statement.
    Positional(Vec<Option<FieldRef>>),
    /// In the order of their names, without the `$`.
    Named(Vec<(String, Option<FieldRef>)>),
}

impl Parameters {
    fn of(plan: &LogicalPlan) -> Result<Self, EngineError> {
        let fields = plan.get_parameter_fields().map_err(|e| error::of_datafusion(e, &[]))?;
        let position = |id: &str| bare(id).parse::<usize>().ok();
        let last = fields.keys().filter_map(|id| position(id)).max().unwrap_or(0);
        let named: Vec<_> = fields.iter().filter(|(id, _)| position(id).is_none()).collect();
        if named.is_empty() {
            // A number out of reach of any client costs no memory.
            if last > MAX_PARAMETERS {
                let message = format!("the parameter ${last}: at most {MAX_PARAMETERS} parameters can be used");
                return Err(EngineError::Parameters { message });
            }
            let field = |number: usize| fields.get(&format!("${number}")).cloned().flatten();
            return Ok(Parameters::Positional((1..=last).map(field).collect()));
        }
        if last > 0 {
            let message = "the statement has both numbered and named parameters".to_owned();
            return Err(EngineError::Parameters { message });
        }
        let mut named: Vec<_> = named.into_iter().map(|(id, field)| (bare(id).to_owned(), field.clone())).collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Parameters::Named(named))
    }

    fn len(&self) -> usize {
        match self {
            Parameters::Positional(fields) => fields.len(),
            Parameters::Named(fields) => fields.len(),
        }
    }
}

/// A parameter's number or name without the `$`.
fn bare(id: &str) -> &str {
    id.get(1..).unwrap_or_default()
}

/// Highest number of a parameter.
const MAX_PARAMETERS: usize = 65_535;

/// The parameters of a plan: `$1` and so on, or the names. The type of one that the statement does not tell is Null.
pub(super) fn fields(plan: &LogicalPlan) -> Result<SchemaRef, EngineError> {
    let field = |name: String, field: &Option<FieldRef>| {
        let data_type = field.as_ref().map_or(DataType::Null, |field| field.data_type().clone());
        Field::new(name, data_type, true)
    };
    let fields: Vec<Field> = match Parameters::of(plan)? {
        Parameters::Positional(fields) => {
            fields.iter().enumerate().map(|(index, of)| field(format!("${}", index + 1), of)).collect()
        }
        Parameters::Named(fields) => fields.iter().map(|(name, of)| field(format!("${name}"), of)).collect(),
    };
    Ok(Arc::new(Schema::new(fields)))
}

/// The plan with the values of one row of parameters. In a change they get the types of the columns that they are
/// for, which DataFusion has found and does not cast to.
pub(super) fn bind(plan: LogicalPlan, row: Option<&RecordBatch>, is_change: bool) -> Result<LogicalPlan, EngineError> {
    let parameters = Parameters::of(&plan)?;
    let given = row.map_or(0, RecordBatch::num_columns);
    if parameters.len() != given {
        let message = format!("the statement has {} parameters, {given} were given", parameters.len());
        return Err(EngineError::Parameters { message });
    }
    let Some(row) = row.filter(|_| given > 0) else { return Ok(plan) };
    let failed = |e| error::of_datafusion(e, &[]);
    let schema = row.schema();
    let value = |index: usize, expected: &Option<FieldRef>| {
        let mut value = ScalarValue::try_from_array(row.column(index), 0).map_err(failed)?;
        if let Some(field) = expected.as_ref().filter(|_| is_change) {
            value = value.cast_to(field.data_type()).map_err(|e| EngineError::Parameters {
                message: format!("parameter {}: {}", index + 1, error::short(&e)),
            })?;
        }
        let metadata = FieldMetadata::new_from_field(schema.field(index));
        Ok(ScalarAndMetadata::new(value, Some(metadata).filter(|metadata| !metadata.is_empty())))
    };
    let values = match parameters {
        Parameters::Positional(fields) => {
            let values = fields.iter().enumerate().map(|(index, field)| value(index, field));
            ParamValues::List(values.collect::<Result<_, EngineError>>()?)
        }
        Parameters::Named(fields) => {
            let mut values = HashMap::new();
            for (name, field) in fields {
                let index = schema.fields().iter().position(|field| field.name().trim_start_matches('$') == name);
                let Some(index) = index else {
                    let message = format!("no value was given for the parameter ${name}");
                    return Err(EngineError::Parameters { message });
                };
                values.insert(name, value(index, &field)?);
            }
            ParamValues::Map(values)
        }
    };
    plan.with_param_values(values).map_err(failed)
}
