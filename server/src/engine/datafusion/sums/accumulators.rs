//! The sums under way: of all rows or of a window, of distinct values, and of groups.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::mem::{size_of, size_of_val};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Decimal128Type, Decimal256Type, DecimalType};
use arrow_array::{Array, ArrayRef, ArrowNativeTypeOp, BooleanArray, PrimitiveArray};
use arrow_schema::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::error::Result;
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};
use datafusion_functions_aggregate_common::aggregate::groups_accumulator::prim_op::PrimitiveGroupsAccumulator;

use super::{narrow, no_room, parts, widen};

/// The sum of all rows or of a window, for a type of results and of the state.
pub(super) fn accumulator(result: &DataType, state: &DataType, is_distinct: bool) -> Box<dyn Accumulator> {
    let types = Types { result: result.clone(), state: state.clone() };
    match (state, is_distinct) {
        (DataType::Decimal256(..), false) => Box::new(Total::<Decimal256Type>::new(types)),
        (DataType::Decimal256(..), true) => Box::new(Distinct::<Decimal256Type>::new(types)),
        (_, false) => Box::new(Total::<Decimal128Type>::new(types)),
        (_, true) => Box::new(Distinct::<Decimal128Type>::new(types)),
    }
}

/// The sums of groups, for a type of results and of the state.
pub(super) fn groups_accumulator(result: &DataType, state: &DataType) -> Box<dyn GroupsAccumulator> {
    let types = Types { result: result.clone(), state: state.clone() };
    match state {
        DataType::Decimal256(..) => Box::new(Groups::new::<Decimal256Type>(types)),
        _ => Box::new(Groups::new::<Decimal128Type>(types)),
    }
}

/// The types of a sum.
#[derive(Debug)]
struct Types {
    result: DataType,
    state: DataType,
}

impl Types {
    /// A sum as a value of the state's type.
    fn state<T: DecimalType>(&self, sum: Option<T::Native>) -> Result<ScalarValue> {
        ScalarValue::new_primitive::<T>(sum, &self.state)
    }

    /// A sum as a value of the result's type.
    fn result<T: DecimalType>(&self, sum: Option<T::Native>) -> Result<ScalarValue> {
        let sum: ArrayRef = Arc::new(PrimitiveArray::<T>::from_iter([sum]).with_data_type(self.state.clone()));
        ScalarValue::try_from_array(&narrow(&sum, &self.result)?, 0)
    }
}

/// The sum of all values.
#[derive(Debug)]
struct Total<T: ArrowPrimitiveType> {
    types: Types,
    sum: T::Native,
    /// Number of values in the sum; without any it is NULL.
    values: u64,
}

impl<T: DecimalType> Total<T> {
    fn new(types: Types) -> Self {
        Self { types, sum: T::Native::ZERO, values: 0 }
    }

    fn change(&mut self, values: &ArrayRef, operation: fn(T::Native, T::Native) -> Option<T::Native>) -> Result<u64> {
        let counted = (values.len() - values.null_count()) as u64;
        let parts = parts(values, &self.types.state)?;
        let parts = parts.as_primitive::<T>();
        let sum = match parts.null_count() {
            0 => parts.values().iter().copied().try_fold(self.sum, operation),
            _ => parts.iter().flatten().try_fold(self.sum, operation),
        };
        self.sum = sum.ok_or_else(|| no_room(&self.types.result))?;
        Ok(counted)
    }

    fn current(&self) -> Option<T::Native> {
        (self.values > 0).then_some(self.sum)
    }
}

impl<T: DecimalType + fmt::Debug> Accumulator for Total<T> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.values += self.change(&values[0], |a, b| a.add_checked(b).ok())?;
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.values -= self.change(&values[0], |a, b| a.sub_checked(b).ok())?;
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.types.state::<T>(self.current())?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.types.result::<T>(self.current())
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

/// The sum of the distinct values.
#[derive(Debug)]
struct Distinct<T: ArrowPrimitiveType> {
    types: Types,
    /// Number of rows with each value; a window drops values that have left it.
    rows: HashMap<T::Native, u64>,
}

impl<T: DecimalType> Distinct<T> {
    fn new(types: Types) -> Self {
        Self { types, rows: HashMap::new() }
    }
}

impl<T: DecimalType + fmt::Debug> Accumulator for Distinct<T>
where
    T::Native: Eq + Hash,
{
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let values = widen(&values[0], &self.types.state)?;
        for value in values.as_primitive::<T>().iter().flatten() {
            *self.rows.entry(value).or_default() += 1;
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let values = widen(&values[0], &self.types.state)?;
        for value in values.as_primitive::<T>().iter().flatten() {
            if let Some(rows) = self.rows.get_mut(&value) {
                *rows -= 1;
                if *rows == 0 {
                    self.rows.remove(&value);
                }
            }
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values = PrimitiveArray::<T>::from_iter_values(self.rows.keys().copied());
        let values: ArrayRef = Arc::new(values.with_data_type(self.types.state.clone()));
        Ok(vec![SingleRowListArrayBuilder::new(values).build_list_scalar()])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        states[0].as_list::<i32>().iter().flatten().try_for_each(|values| self.update_batch(&[values]))
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let mut values = self.rows.keys().copied();
        let sum = match values.next() {
            None => None,
            Some(first) => {
                let sum = values.try_fold(first, |a, b| a.add_checked(b).ok());
                Some(sum.ok_or_else(|| no_room(&self.types.result))?)
            }
        };
        self.types.result::<T>(sum)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.rows.capacity() * size_of::<(T::Native, u64)>()
    }
}

/// The sums of groups.
struct Groups {
    types: Types,
    sums: Box<dyn GroupsAccumulator>,
    /// An addition had no room in the state's type.
    overflow: Arc<AtomicBool>,
}

impl Groups {
    fn new<T: DecimalType>(types: Types) -> Self {
        let overflow = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&overflow);
        let add = move |sum: &mut T::Native, value: T::Native| match sum.add_checked(value) {
            Ok(total) => *sum = total,
            Err(_) => seen.store(true, Ordering::Relaxed),
        };
        let sums = Box::new(PrimitiveGroupsAccumulator::<T, _>::new(&types.state, add));
        Self { types, sums, overflow }
    }

    fn check(&self) -> Result<()> {
        match self.overflow.load(Ordering::Relaxed) {
            true => Err(no_room(&self.types.result).into()),
            false => Ok(()),
        }
    }
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        groups: usize,
    ) -> Result<()> {
        let values = widen(&values[0], &self.types.state)?;
        self.sums.update_batch(&[values], group_indices, filter, groups)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], groups: usize) -> Result<()> {
        self.sums.merge_batch(values, group_indices, groups)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        self.check()?;
        narrow(&self.sums.evaluate(emit_to)?, &self.types.result)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.check()?;
        self.sums.state(emit_to)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        self.sums.convert_to_state(&[widen(&values[0], &self.types.state)?], filter)
    }

    fn size(&self) -> usize {
        self.sums.size()
    }
}
