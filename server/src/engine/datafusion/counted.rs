//! Counts large values of a projection in the memory pool. DataFusion counts none of them: a text of 20 MB in each of
//! 60 rows took more than a gigabyte beside any limit.
//!
//! After the optimization of a plan, expressions of its projections that may be large are wrapped in a function. It
//! reserves the bytes of a batch's values before it repeats a value for each row, and after any other evaluation. The
//! last batches of all partitions stay reserved until the query ends. So a plan with this function is for one query.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::Array;
use arrow_schema::{DataType, FieldRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};

use super::bounds;

/// Values of a batch of less than these bytes are not counted.
const LARGE_BYTES: usize = 1 << 20;
/// A constant of at least these bytes may be large, because it is repeated for each row of a batch.
const LARGE_CONSTANT: usize = 1 << 10;
/// Name of the function in plans, and of its memory in errors.
const NAME: &str = "large_values";

/// Wraps the expressions that may be large. Returns whether there are any.
pub(super) fn count(plan: LogicalPlan, pool: &Arc<dyn MemoryPool>, partitions: usize) -> Result<(LogicalPlan, bool)> {
    let wrap = |expr: Expr| -> Result<Transformed<Expr>> {
        if !may_be_large(&expr)? {
            return Ok(Transformed::no(expr));
        }
        let name = NamePreserver::new_for_projection().save(&expr);
        let counted = Counted {
            pool: Arc::clone(pool),
            partitions,
            held: Mutex::default(),
            signature: Signature::any(1, Volatility::Volatile),
        };
        let func = Arc::new(ScalarUDF::new_from_impl(counted));
        let args = vec![expr.unalias()];
        Ok(Transformed::yes(name.restore(Expr::ScalarFunction(ScalarFunction { func, args }))))
    };
    let counted = plan.transform_down_with_subqueries(|node| match node {
        LogicalPlan::Projection(_) => node.map_expressions(wrap),
        other => Ok(Transformed::no(other)),
    })?;
    Ok((counted.data, counted.transformed))
}

fn may_be_large(expr: &Expr) -> Result<bool> {
    let mut found = false;
    expr.apply(|part| {
        found |= match part {
            Expr::Literal(value, _) => value.size() >= LARGE_CONSTANT,
            Expr::ScalarFunction(function) => bounds::grows(function.func.name()),
            _ => false,
        };
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// The function. It returns its argument.
struct Counted {
    pool: Arc<dyn MemoryPool>,
    partitions: usize,
    /// The memory of the last batches.
    held: Mutex<VecDeque<MemoryReservation>>,
    signature: Signature,
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted").finish_non_exhaustive()
    }
}

impl PartialEq for Counted {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Counted {}

impl Hash for Counted {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::hash(self, state);
    }
}

impl Counted {
    /// Reserves the memory of one batch's values, in place of that of an earlier batch.
    fn reserve(&self, bytes: usize) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= self.partitions {
            held.pop_front();
        }
        let reservation = MemoryConsumer::new(NAME).register(&self.pool);
        reservation.try_grow(bytes)?;
        held.push_back(reservation);
        Ok(())
    }
}

impl ScalarUDFImpl for Counted {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(no_argument)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        args.arg_fields.first().cloned().ok_or_else(no_argument)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        match args.args.into_iter().next().ok_or_else(no_argument)? {
            ColumnarValue::Scalar(value) => {
                let bytes = value.size().saturating_mul(rows);
                if bytes < LARGE_BYTES {
                    return Ok(ColumnarValue::Scalar(value));
                }
                self.reserve(bytes)?;
                value.to_array_of_size(rows).map(ColumnarValue::Array)
            }
            ColumnarValue::Array(array) => {
                let bytes = array.get_buffer_memory_size();
                if bytes >= LARGE_BYTES {
                    self.reserve(bytes)?;
                }
                Ok(ColumnarValue::Array(array))
            }
        }
    }
}

fn no_argument() -> DataFusionError {
    DataFusionError::Internal(format!("{NAME} has one argument"))
}
