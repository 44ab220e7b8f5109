//! Functions whose result can be much larger than their arguments, with a bound.
//!
//! DataFusion's functions allocate what they are asked for: `repeat('x', 2147483647)` takes two gigabytes that no
//! memory pool counts, and an allocation that fails ends the process (DataFusion issue 5415). So the size of the result
//! is estimated before the function runs, and is reserved in the memory pool while it does.

use std::cell::Cell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use datafusion::prelude::SessionContext;

/// Bytes of one result of one function, for one batch.
const MOST_BYTES: u64 = 512 << 20;

/// A result above this size is not made while a query is planned. It would become a constant of the plan, and most
/// steps of planning copy the plan.
const LARGE_BYTES: u64 = 1 << 20;

thread_local! {
    /// Whether this thread plans a query.
    static PLANNING: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as one that plans, until it is dropped.
pub(super) struct Planning(());

impl Planning {
    pub(super) fn begin() -> Self {
        PLANNING.set(true);
        Planning(())
    }
}

impl Drop for Planning {
    fn drop(&mut self) {
        PLANNING.set(false);
    }
}

/// Estimates the bytes of a result from the arguments and the number of rows.
type Estimate = fn(&Arguments<'_>) -> Option<u64>;

/// The functions with a bound. `None` as an estimate means that the arguments are not of a kind that grows.
const BOUNDED: [(&str, Estimate); 10] = [
    ("repeat", |of| of.sum(|row| Some(of.len(0, row)?.saturating_mul(of.number(1, row)?)))),
    ("lpad", padded),
    ("rpad", padded),
    ("replace", replaced),
    ("concat", joined),
    ("concat_ws", separated),
    ("array_repeat", |of| of.sum(|row| Some(of.width(0, row).saturating_mul(of.number(1, row)?)))),
    ("array_resize", |of| of.sum(|row| Some(of.number(1, row)?.saturating_mul(ITEM_BYTES)))),
    ("range", series),
    ("generate_series", series),
];

/// Returns whether the results of a function or an operator of this name may be much larger than its arguments.
pub(super) fn grows(name: &str) -> bool {
    name == "||" || BOUNDED.iter().any(|(known, _)| *known == name)
}

/// Bytes of an item of a list.
const ITEM_BYTES: u64 = 8;

fn padded(of: &Arguments<'_>) -> Option<u64> {
    // A character of UTF-8 has at most four bytes.
    of.sum(|row| Some(of.number(1, row)?.saturating_mul(4).max(of.len(0, row)?))).map(|bytes| match of.is_ascii(2) {
        true => bytes / 4,
        false => bytes,
    })
}

fn joined(of: &Arguments<'_>) -> Option<u64> {
    of.sum(|row| (0..of.args.len()).try_fold(0u64, |sum, argument| Some(sum + of.len(argument, row).unwrap_or(0))))
}

fn separated(of: &Arguments<'_>) -> Option<u64> {
    let separators = of.args.len().saturating_sub(2) as u64;
    of.sum(|row| {
        let texts: u64 = (1..of.args.len()).map(|argument| of.len(argument, row).unwrap_or(0)).sum();
        Some(texts.saturating_add(of.len(0, row).unwrap_or(0).saturating_mul(separators)))
    })
}

fn replaced(of: &Arguments<'_>) -> Option<u64> {
    of.sum(|row| {
        let (len, from, to) = (of.len(0, row)?, of.len(1, row)?, of.len(2, row)?);
        if to <= from || from == 0 {
            return Some(len);
        }
        let matches = of.text(0, row).zip(of.text(1, row)).map_or(0, |(text, from)| text.matches(from).count() as u64);
        Some(len.saturating_add(matches.saturating_mul(to - from)))
    })
}

/// The lists of `range` and `generate_series`, of numbers.
fn series(of: &Arguments<'_>) -> Option<u64> {
    of.sum(|row| {
        let (start, stop, step) = match of.args.len() {
            1 => (0, of.signed(0, row)?, 1),
            _ => (of.signed(0, row)?, of.signed(1, row)?, if of.args.len() > 2 { of.signed(2, row)? } else { 1 }),
        };
        let items = i128::from(stop).abs_diff(i128::from(start)) / i128::from(step).unsigned_abs().max(1) + 1;
        let runs = (stop >= start) == (step > 0);
        Some(if runs { u64::try_from(items).unwrap_or(u64::MAX).saturating_mul(ITEM_BYTES) } else { 0 })
    })
}

/// Replaces the functions of a session by bounded ones.
pub(super) fn register(context: &SessionContext) {
    let state = context.state();
    let functions = state.scalar_functions();
    let pool = Pool(Arc::clone(&context.runtime_env().memory_pool));
    for (name, estimate) in BOUNDED {
        let Some(inner) = functions.get(name) else { continue };
        let bounded = Bounded { inner: Arc::clone(inner), estimate: Estimator(estimate), pool: pool.clone() };
        context.register_udf(ScalarUDF::new_from_impl(bounded));
    }
}

#[derive(Clone, Copy)]
struct Estimator(Estimate);

impl fmt::Debug for Estimator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Estimator")
    }
}

#[derive(Clone)]
struct Pool(Arc<dyn MemoryPool>);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

/// A function that refuses a result beyond the bound, or beyond the memory that is left.
#[derive(Debug)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    estimate: Estimator,
    pool: Pool,
}

impl PartialEq for Bounded {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for Bounded {}

impl Hash for Bounded {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

// Simplifications of the function are left out: they would bring the function without a bound back.
impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let estimated = (self.estimate.0)(&Arguments { args: &args.args, rows: args.number_rows });
        check(self.name(), estimated)?;
        let mut _while_it_runs = None;
        if let Some(bytes) = estimated.filter(|bytes| *bytes > LARGE_BYTES) {
            if PLANNING.get() {
                let message = format!("{} is evaluated when the query runs: its result is large", self.name());
                return Err(DataFusionError::Execution(message));
            }
            let reservation = MemoryConsumer::new(self.name()).register(&self.pool.0);
            reservation.try_grow(usize::try_from(bytes).unwrap_or(usize::MAX))?;
            _while_it_runs = Some(reservation);
            if args.number_rows == 1 {
                // The function would copy its result to a scalar, and the query the scalar to an array.
                let arrays = args.args.into_iter().map(|argument| argument.into_array(1).map(ColumnarValue::Array));
                args.args = arrays.collect::<Result<_>>()?;
            }
        }
        self.inner.invoke_with_args(args)
    }
}

/// Refuses a result of more bytes than the bound.
pub(super) fn check(name: &str, estimated: Option<u64>) -> Result<()> {
    match estimated.filter(|bytes| *bytes > MOST_BYTES) {
        Some(bytes) => Err(DataFusionError::ResourcesExhausted(format!(
            "{name} would make {} MiB at once, and the limit is {} MiB",
            bytes >> 20,
            MOST_BYTES >> 20
        ))),
        None => Ok(()),
    }
}

/// The arguments of a call.
pub(super) struct Arguments<'a> {
    pub(super) args: &'a [ColumnarValue],
    pub(super) rows: usize,
}

impl<'a> Arguments<'a> {
    /// The sum over all rows. A call with scalars only is made once.
    pub(super) fn sum(&self, of_row: impl Fn(usize) -> Option<u64>) -> Option<u64> {
        let is_scalar = self.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let rows = if is_scalar { 1 } else { self.rows };
        Some((0..rows).filter_map(of_row).fold(0, u64::saturating_add))
    }

    /// The bytes of a text.
    fn len(&self, argument: usize, row: usize) -> Option<u64> {
        self.text(argument, row).map(|text| text.len() as u64)
    }

    pub(super) fn text(&self, argument: usize, row: usize) -> Option<&'a str> {
        match self.args.get(argument)? {
            ColumnarValue::Scalar(
                ScalarValue::Utf8(text) | ScalarValue::LargeUtf8(text) | ScalarValue::Utf8View(text),
            ) => text.as_deref(),
            ColumnarValue::Scalar(ScalarValue::Dictionary(_, value)) => match &**value {
                ScalarValue::Utf8(text) | ScalarValue::LargeUtf8(text) | ScalarValue::Utf8View(text) => text.as_deref(),
                _ => None,
            },
            ColumnarValue::Scalar(_) => None,
            ColumnarValue::Array(array) => text_at(array, row),
        }
    }

    /// Whether every text of an argument that is the same for all rows is ASCII.
    fn is_ascii(&self, argument: usize) -> bool {
        match self.args.get(argument) {
            None => true,
            Some(ColumnarValue::Scalar(_)) => self.text(argument, 0).is_none_or(str::is_ascii),
            Some(ColumnarValue::Array(_)) => false,
        }
    }

    /// A number of repetitions or items; a negative one counts as none.
    fn number(&self, argument: usize, row: usize) -> Option<u64> {
        self.signed(argument, row).map(|number| u64::try_from(number).unwrap_or(0))
    }

    fn signed(&self, argument: usize, row: usize) -> Option<i64> {
        match self.args.get(argument)? {
            ColumnarValue::Scalar(value) => match value.cast_to(&DataType::Int64).ok()? {
                ScalarValue::Int64(number) => number,
                _ => None,
            },
            ColumnarValue::Array(array) => {
                let numbers = array.as_primitive_opt::<Int64Type>()?;
                numbers.is_valid(row).then(|| numbers.value(row))
            }
        }
    }

    /// The bytes of a value of any type, roughly.
    fn width(&self, argument: usize, row: usize) -> u64 {
        match self.args.get(argument) {
            Some(ColumnarValue::Scalar(value)) => value.size() as u64,
            Some(ColumnarValue::Array(array)) => {
                text_at(array, row).map_or(ITEM_BYTES, |text| text.len() as u64 + ITEM_BYTES)
            }
            None => ITEM_BYTES,
        }
    }
}

fn text_at(array: &ArrayRef, row: usize) -> Option<&str> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::Utf8 => Some(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(array.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(array.as_string_view().value(row)),
        _ => None,
    }
}
