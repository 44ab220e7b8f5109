//! Batches survive Arrow IPC in messages; nothing hostile does harm.

use std::sync::Arc;

use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use proptest::prelude::*;
use thallus_protocol::inline::{InlineDecoder, InlineEncoder, InlineError, InlineLimits, decode_schema};
use thallus_protocol::testing::{Dice, all_types, arb_batch, arb_batches, array, mutate_bytes, same_array, same_batch};

/// An encoder, unless the schema has the one thing that Arrow IPC cannot carry.
fn encoder(schema: &Schema) -> Option<(InlineEncoder, Vec<u8>)> {
    match InlineEncoder::new(schema) {
        Ok(encoder) => Some(encoder),
        Err(InlineError::Unsupported { data_type: DataType::Dictionary(_, values), .. }) => {
            assert!(matches!(*values, DataType::Dictionary(_, _)), "{values} is carried by IPC");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn decoder(schema: &[u8]) -> InlineDecoder {
    InlineDecoder::new(schema, InlineLimits::default()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_batches_survive(batches in arb_batches(3)) {
        let schema = batches[0].schema();
        let Some((mut encoder, message)) = encoder(&schema) else { return Ok(()) };
        let mut decoder = decoder(&message);
        prop_assert_eq!(decoder.schema(), &schema);
        for batch in &batches {
            let message = encoder.encode(batch).unwrap();
            let back = decoder.decode(Bytes::from(message)).unwrap();
            prop_assert_eq!(same_batch(batch, &back), Ok(()));
            back.columns().iter().for_each(|column| column.to_data().validate_full().unwrap());
        }
    }

    #[test]
    fn hostile_bytes_are_refused_or_harmless(batch in arb_batch(), seed in any::<u64>()) {
        let Some((mut encoder, schema)) = encoder(&batch.schema()) else { return Ok(()) };
        let message = encoder.encode(&batch).unwrap();
        let mut dice = Dice::new(seed);
        for _ in 0..8 {
            let mut hostile = message.clone();
            mutate_bytes(&mut hostile, &mut dice);
            hostile.truncate(if dice.one_in(8) { dice.below(message.len()) } else { message.len() });
            match decoder(&schema).decode(Bytes::from(hostile)) {
                Ok(back) => back.columns().iter().for_each(|column| column.to_data().validate_full().unwrap()),
                Err(error) => prop_assert!(!matches!(error, InlineError::Panicked { .. }), "{}", error),
            }
            let mut hostile = schema.clone();
            mutate_bytes(&mut hostile, &mut dice);
            if let Err(error) = decode_schema(&hostile, &InlineLimits::default()) {
                prop_assert!(!matches!(error, InlineError::Panicked { .. }), "{}", error);
            }
        }
    }
}

#[test]
fn every_type_survives_every_slice() {
    for data_type in all_types() {
        let schema = Arc::new(Schema::new(vec![Field::new("column", data_type.clone(), true)]));
        let (mut encoder, message) = InlineEncoder::new(&schema).unwrap();
        let mut decoder = decoder(&message);
        let whole = array(schema.field(0), 12, &mut Dice::new(11));
        for (start, len) in [(0, 12), (0, 0), (12, 0), (1, 9), (3, 1), (5, 7), (8, 4), (11, 1)] {
            let batch = RecordBatch::try_new(schema.clone(), vec![whole.slice(start, len)]).unwrap();
            let back = decoder.decode(encoder.encode(&batch).unwrap().into()).unwrap();
            same_array(batch.column(0), back.column(0)).unwrap_or_else(|e| panic!("{data_type} {start} {len}: {e}"));
        }
    }
}
