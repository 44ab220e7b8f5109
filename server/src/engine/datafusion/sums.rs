//! `sum` of integers, decimals and durations that refuses a result beyond its type. DataFusion's wraps, and so gives a
//! wrong value (DataFusion issue 17539).
//!
//! The sum is kept in a decimal of 128 bits, or 256 bits for decimals of 256, and is checked at the end. So it depends
//! neither on the order of the rows nor on the number of partitions. A sum of 38 or 76 digits may be an error although
//! its result has room, if a sum on the way to it has none; no order gives a wrong value. Floats and intervals are left
//! to DataFusion.

mod accumulators;

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, DecimalType, Int64Type,
    UInt64Type,
};
use arrow_array::{Array, ArrayRef, PrimitiveArray};
use arrow_schema::{ArrowError, DataType, Field, FieldRef};
use datafusion::arrow::compute::sum;
use datafusion::error::{DataFusionError, Result};
use datafusion::functions_aggregate::sum::Sum;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, GroupsAccumulator, ReversedUDAF, SetMonotonicity,
    Signature,
};
use datafusion::prelude::SessionContext;

/// Replaces `sum` of a session.
pub(super) fn register(context: &SessionContext) {
    context.register_udaf(AggregateUDF::from(CheckedSum(Sum::new())));
}

/// The function `sum`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CheckedSum(Sum);

/// Type of the sums under way, for a type of results; `None` if DataFusion's `sum` is used.
fn state_type(result: &DataType) -> Option<DataType> {
    match result {
        DataType::Int64 | DataType::UInt64 | DataType::Duration(_) => Some(DataType::Decimal128(38, 0)),
        DataType::Decimal32(_, scale) | DataType::Decimal64(_, scale) | DataType::Decimal128(_, scale) => {
            Some(DataType::Decimal128(38, *scale))
        }
        DataType::Decimal256(_, scale) => Some(DataType::Decimal256(76, *scale)),
        _ => None,
    }
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.0.return_type(types)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match state_type(args.return_type()) {
            Some(state) => Ok(accumulators::accumulator(args.return_type(), &state, args.is_distinct)),
            None => self.0.accumulator(args),
        }
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match state_type(args.return_type()) {
            Some(state) => Ok(accumulators::accumulator(args.return_type(), &state, args.is_distinct)),
            None => self.0.create_sliding_accumulator(args),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let Some(state) = state_type(args.return_type()) else { return self.0.state_fields(args) };
        let field = match args.is_distinct {
            true => {
                let name = format_state_name(args.name, "sum distinct");
                Field::new_list(name, Field::new_list_field(state, true), false)
            }
            false => Field::new(format_state_name(args.name, "sum"), state, true),
        };
        Ok(vec![field.into()])
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        self.0.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        match state_type(args.return_type()) {
            Some(state) => Ok(accumulators::groups_accumulator(args.return_type(), &state)),
            None => self.0.create_groups_accumulator(args),
        }
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        self.0.reverse_expr()
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.0.order_sensitivity()
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.0.documentation()
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.0.set_monotonicity(data_type)
    }
}

/// The values as numbers of the state's type.
fn widen(values: &ArrayRef, state: &DataType) -> Result<ArrayRef> {
    fn wide<T: ArrowPrimitiveType>(values: &ArrayRef, state: &DataType) -> ArrayRef
    where
        i128: From<T::Native>,
    {
        let wide: PrimitiveArray<Decimal128Type> = values.as_primitive::<T>().unary(i128::from);
        Arc::new(wide.with_data_type(state.clone()))
    }
    Ok(match values.data_type() {
        DataType::Int64 => wide::<Int64Type>(values, state),
        DataType::UInt64 => wide::<UInt64Type>(values, state),
        DataType::Decimal32(..) => wide::<Decimal32Type>(values, state),
        DataType::Decimal64(..) => wide::<Decimal64Type>(values, state),
        DataType::Duration(_) => wide::<Int64Type>(&arrow_cast::cast(values, &DataType::Int64)?, state),
        DataType::Decimal128(..) | DataType::Decimal256(..) => ArrayRef::clone(values),
        other => return Err(DataFusionError::Internal(format!("sum of {other}"))),
    })
}

/// Numbers of the state's type with the same sum as the values. Integers are summed up in two halves, which cannot
/// overflow in a batch and needs no wider type, as that would take twice the time.
fn parts(values: &ArrayRef, state: &DataType) -> Result<ArrayRef> {
    let (high, low) = match values.data_type() {
        DataType::Int64 => {
            let values = values.as_primitive::<Int64Type>();
            let low = values.unary::<_, UInt64Type>(|value| value.cast_unsigned() & u64::from(u32::MAX));
            (sum(&values.unary::<_, Int64Type>(|value| value >> 32)).map(i128::from), sum(&low))
        }
        DataType::UInt64 => {
            let values = values.as_primitive::<UInt64Type>();
            let low = values.unary::<_, UInt64Type>(|value| value & u64::from(u32::MAX));
            (sum(&values.unary::<_, UInt64Type>(|value| value >> 32)).map(i128::from), sum(&low))
        }
        _ => return widen(values, state),
    };
    let total = high.zip(low).map(|(high, low)| (high << 32) + i128::from(low));
    Ok(Arc::new(PrimitiveArray::<Decimal128Type>::from_iter(total).with_data_type(state.clone())))
}

/// Sums as values of the result's type, or the error that one has no room there.
fn narrow(sums: &ArrayRef, result: &DataType) -> Result<ArrayRef> {
    fn narrowed<T: ArrowPrimitiveType>(sums: &ArrayRef, result: &DataType) -> Result<PrimitiveArray<T>>
    where
        T::Native: TryFrom<i128>,
    {
        let sums = sums.as_primitive::<Decimal128Type>();
        let narrow = sums.try_unary::<_, T, ArrowError>(|sum| sum.try_into().map_err(|_| no_room(result)))?;
        Ok(narrow)
    }
    fn decimal<T: DecimalType>(sums: PrimitiveArray<T>, precision: u8, result: &DataType) -> Result<ArrayRef> {
        sums.validate_decimal_precision(precision).map_err(|_| no_room(result))?;
        Ok(Arc::new(sums.with_data_type(result.clone())))
    }
    match result {
        DataType::Int64 => Ok(Arc::new(narrowed::<Int64Type>(sums, result)?)),
        DataType::UInt64 => Ok(Arc::new(narrowed::<UInt64Type>(sums, result)?)),
        DataType::Duration(_) => {
            let numbers: ArrayRef = Arc::new(narrowed::<Int64Type>(sums, result)?);
            Ok(arrow_cast::cast(&numbers, result)?)
        }
        DataType::Decimal32(precision, _) => decimal(narrowed::<Decimal32Type>(sums, result)?, *precision, result),
        DataType::Decimal64(precision, _) => decimal(narrowed::<Decimal64Type>(sums, result)?, *precision, result),
        DataType::Decimal128(precision, _) => {
            decimal(sums.as_primitive::<Decimal128Type>().clone(), *precision, result)
        }
        DataType::Decimal256(precision, _) => {
            decimal(sums.as_primitive::<Decimal256Type>().clone(), *precision, result)
        }
        other => Err(DataFusionError::Internal(format!("sum as {other}"))),
    }
}

/// The error of a sum that its type cannot hold.
fn no_room(result: &DataType) -> ArrowError {
    ArrowError::ArithmeticOverflow(format!(
        "a sum is beyond its type {result}; sum(CAST(... AS DECIMAL(38, 0))) has room for more"
    ))
}
