//! Arrays from parts that the protocol has validated, without validating them again.

use arrow_data::ArrayData;
use arrow_schema::ArrowError;
use thallus_protocol::layout::{Assemble, ValidArray};

/// Makes arrays from parts that the protocol has validated, without Arrow's own validation. That validation checks
/// strings one by one, and takes several times as long as reading them over a fabric.
#[derive(Clone, Copy, Debug)]
pub struct UncheckedAssembler;

impl Assemble for UncheckedAssembler {
    fn assemble(&self, array: ValidArray) -> Result<ArrayData, ArrowError> {
        // SAFETY: only `thallus_protocol::layout` makes a `ValidArray`, and only of parts that Arrow's own validation
        // would accept. They are immutable buffers, and nothing about them can be changed on the way here: a builder
        // can be made of a `ValidArray`, but no `ValidArray` of a builder. A mapped buffer lies in a lender's memory:
        // that the lender does not write to it is promised by the `TrustedPeer` that it was mapped by. The protocol's
        // tests and its fuzz target compare its validation with Arrow's, by `Distrust` of thallus-protocol-testing.
        Ok(unsafe { array.into_builder().build_unchecked() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::builder::StringViewBuilder;
    use arrow_array::types::{Int8Type, Int32Type};
    use arrow_array::{Array, ArrayRef, DictionaryArray, Int32Array, ListArray, RecordBatch, StringArray};
    use arrow_buffer::Buffer;
    use thallus_protocol::layout::{CheckedDescriptor, LayoutLimits, Plan, check, describe, rebuild, rebuild_with};

    use super::*;

    fn batch() -> RecordBatch {
        let strings = || (0..100).map(|n| (n % 7 != 0).then(|| "äbc".repeat(n % 9)));
        let mut views = StringViewBuilder::new().with_fixed_block_size(64);
        strings().for_each(|string| views.append_option(string));
        let lists = (0..100).map(|n| (n % 5 != 0).then(|| (0..n % 4).map(Some)));
        let keys = (0..100).map(|n| (n % 4 != 0).then(|| ["a", "b", "c"][n % 3]));
        let columns: [(&str, ArrayRef); 5] = [
            ("numbers", Arc::new(Int32Array::from_iter(0..100))),
            ("strings", Arc::new(StringArray::from_iter(strings()))),
            ("views", Arc::new(views.finish())),
            ("lists", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists))),
            ("keys", Arc::new(keys.collect::<DictionaryArray<Int8Type>>())),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap()
    }

    fn lend(batch: &RecordBatch) -> (CheckedDescriptor, Vec<Buffer>) {
        let plan = Plan::new(&batch.schema()).unwrap();
        let (descriptor, buffers) = describe(&plan, batch).unwrap();
        (check(&plan, descriptor, &LayoutLimits::default()).unwrap(), buffers)
    }

    #[test]
    fn arrays_are_those_that_arrow_would_make() {
        for (start, len) in [(0, 100), (37, 41), (100, 0)] {
            let batch = batch().slice(start, len);
            let (descriptor, buffers) = lend(&batch);
            let made = rebuild_with(&descriptor, &buffers, &UncheckedAssembler).unwrap();
            assert_eq!(made, batch);
            for column in made.columns() {
                column.to_data().validate_full().unwrap();
            }
        }
    }

    #[test]
    fn what_arrow_would_refuse_is_refused_before() {
        let batch = batch();
        let (descriptor, buffers) = lend(&batch);
        let mut refused = 0;
        for spoiled in 0..buffers.len() {
            for byte in [0x80, 0xff] {
                let mut buffers = buffers.clone();
                buffers[spoiled] = Buffer::from_vec(vec![byte; buffers[spoiled].len()]);
                let made = rebuild_with(&descriptor, &buffers, &UncheckedAssembler);
                let by_arrow = rebuild(&descriptor, &buffers);
                assert_eq!(made.as_ref().err().map(ToString::to_string), by_arrow.err().map(|e| e.to_string()));
                refused += usize::from(made.is_err());
            }
        }
        assert!(refused > buffers.len(), "only {refused}");
    }
}
