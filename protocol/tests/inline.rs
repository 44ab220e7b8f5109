//! Batches survive Arrow IPC in messages. Hostile input is refused or harmless.

use std::sync::Arc;

use arrow_array::{Array, Int32Array, Int64Array, RecordBatch, RecordBatchOptions};
use arrow_ipc::reader::StreamReader;
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use bytes::Bytes;
use proptest::prelude::*;
use thallus_protocol::inline::{InlineDecoder, InlineEncoder, InlineError, InlineLimits, decode_schema, encode_schema};
use thallus_protocol::layout::{MAX_DEPTH, Plan, describe, describe_compact};
use thallus_protocol_testing::{
    Dice, all_types, arb_batch, arb_batches, array, batch, mutate_bytes, same_array, same_batch, shared_views,
};

/// An encoder, or `None` for a dictionary of dictionaries, the only type that Arrow IPC does not support.
fn encoder(schema: &Schema) -> Option<(InlineEncoder, Vec<u8>)> {
    match InlineEncoder::new(schema) {
        Ok(encoder) => Some(encoder),
        Err(InlineError::Unsupported { data_type: DataType::Dictionary(_, values), .. }) => {
            assert!(matches!(*values, DataType::Dictionary(_, _)), "IPC supports {values}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn decoder(schema: &[u8]) -> InlineDecoder {
    InlineDecoder::new(schema, InlineLimits::default()).unwrap()
}

// 256 cases each; PROPTEST_CASES sets another number.
proptest! {
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

#[test]
fn dictionaries_of_dictionaries_are_refused_by_name() {
    let dictionary = |values| DataType::Dictionary(DataType::Int8.into(), Box::new(values));
    let nested = dictionary(dictionary(DataType::Utf8));
    let column = DataType::Struct(vec![Field::new("inner", nested.clone(), true)].into());
    let error = encode_schema(&Schema::new(vec![Field::new("column", column, true)])).unwrap_err();
    match error {
        InlineError::Unsupported { field, data_type } => assert_eq!((field.as_str(), data_type), ("column", nested)),
        other => panic!("{other}"),
    }
}

#[test]
fn messages_in_order_are_a_stream_that_arrow_reads() {
    let schema = Arc::new(Schema::new(vec![
        Field::new("d", DataType::Dictionary(DataType::Int8.into(), DataType::Utf8.into()), true),
        Field::new("v", DataType::Utf8View, true),
    ]));
    let (mut encoder, mut stream) = InlineEncoder::new(&schema).unwrap();
    let batches: Vec<_> = (0..4).map(|seed| batch(&schema, 9, &mut Dice::new(seed))).collect();
    for batch in &batches {
        stream.extend(encoder.encode(batch).unwrap());
    }
    let read: Vec<_> = StreamReader::try_new(&stream[..], None).unwrap().map(Result::unwrap).collect();
    assert_eq!(read.len(), 4);
    for (batch, back) in batches.iter().zip(&read) {
        assert_eq!(same_batch(batch, back), Ok(()));
    }
}

#[test]
fn rows_survive_without_columns() {
    let (mut encoder, message) = InlineEncoder::new(&Schema::empty()).unwrap();
    let options = RecordBatchOptions::new().with_row_count(Some(7));
    let batch = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).unwrap();
    assert_eq!(decoder(&message).decode(encoder.encode(&batch).unwrap().into()).unwrap().num_rows(), 7);
}

#[test]
fn a_slice_sends_its_live_range_only() {
    for data_type in all_types() {
        let schema = Arc::new(Schema::new(vec![Field::new("column", data_type.clone(), true)]));
        let (mut encoder, _) = InlineEncoder::new(&schema).unwrap();
        let slice = batch(&schema, 4_000, &mut Dice::new(1)).slice(2_345, 2);
        let (lent, _) = describe(&Plan::new(&slice.schema()).unwrap(), &slice).unwrap();
        // The size of the lent batch, and the size of IPC's padding and metadata.
        let most = lent.live_bytes() as usize + 1024 + 160 * (lent.buffers.len() + lent.nodes.len());
        let sent = encoder.encode(&slice).unwrap().len();
        assert!(sent <= most, "{data_type}: {sent} bytes for two rows, more than {most} bytes");
    }
}

/// After a scan, a join or a sort, views often reference little or nothing of their data buffers.
#[test]
fn views_send_only_the_referenced_parts_of_their_buffers() {
    for seed in 0..50 {
        let array = shared_views(&DataType::Utf8View, true, 100, &mut Dice::new(seed));
        let batch = RecordBatch::try_from_iter_with_nullable([("v", array, true)]).unwrap();
        let (mut encoder, schema) = InlineEncoder::new(&batch.schema()).unwrap();
        let lent = describe_compact(&Plan::new(&batch.schema()).unwrap(), &batch).unwrap().descriptor;
        let most = lent.live_bytes() as usize + 1024 + 160 * (lent.buffers.len() + lent.nodes.len());
        let sent = encoder.encode(&batch).unwrap();
        assert!(sent.len() <= most, "seed {seed}: {} bytes, more than {most} bytes", sent.len());
        let back = decoder(&schema).decode(sent.into()).unwrap();
        assert_eq!(same_batch(&batch, &back), Ok(()), "seed {seed}");
    }
}

#[test]
fn aligned_messages_are_not_copied() {
    let batch = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from_iter_values(0..999)) as _)]).unwrap();
    let (mut encoder, schema) = InlineEncoder::new(&batch.schema()).unwrap();
    // The allocator of `Vec<u8>` guarantees no alignment; a connection's receive buffer must.
    let encoded = encoder.encode(&batch).unwrap();
    let mut message = vec![0; encoded.len() + 64];
    let shift = message.as_ptr().align_offset(64);
    message[shift..shift + encoded.len()].copy_from_slice(&encoded);
    let message = Bytes::from(message).slice(shift..shift + encoded.len());
    let back = decoder(&schema).decode(message.clone()).unwrap();
    let values = back.column(0).to_data().buffers()[0].clone();
    let start = message.as_ptr() as usize;
    assert!((start..start + message.len()).contains(&(values.as_ptr() as usize)));
    assert_eq!(values.as_ptr() as usize % 64, 0);
}

#[test]
fn exactly_one_batch_is_in_a_message() {
    let batch = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from_iter_values(0..9)) as _)]).unwrap();
    let (mut encoder, schema) = InlineEncoder::new(&batch.schema()).unwrap();
    let message = encoder.encode(&batch).unwrap();
    let decode = |bytes: Vec<u8>| decoder(&schema).decode(bytes.into()).unwrap_err();
    let expected = message.len();
    let error = decode([message.clone(), message.clone()].concat());
    assert!(matches!(error, InlineError::Trailing { extra } if extra == expected));
    assert!(matches!(decode(Vec::new()), InlineError::CutOff { .. }));
    assert!(matches!(decode(message[..message.len() - 1].to_vec()), InlineError::CutOff { what: "the body", .. }));
    assert!(matches!(decode(schema.clone()), InlineError::Unexpected { .. }));
    assert!(matches!(decode(vec![0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]), InlineError::Unexpected { .. }));
    let other = RecordBatch::try_from_iter([("n", Arc::new(Int32Array::from(vec![1])) as _)]).unwrap();
    assert!(matches!(encoder.encode(&other), Err(InlineError::Schema { .. })));
}

#[test]
fn schemas_survive_and_are_bounded() {
    let metadata = [("ARROW:extension:name".to_owned(), "arrow.json".to_owned())];
    let field = Field::new("f", DataType::Utf8, false).with_metadata(metadata.into());
    let schema = Schema::new_with_metadata(vec![field], [("k".to_owned(), "v".to_owned())].into());
    let message = encode_schema(&schema).unwrap();
    assert_eq!(*decode_schema(&message, &InlineLimits::default()).unwrap(), schema);

    let wide = Schema::new((0..11).map(|n| Field::new(n.to_string(), DataType::Int8, true)).collect::<Vec<_>>());
    let limits = InlineLimits { max_fields: 10, ..InlineLimits::default() };
    assert!(matches!(decode_schema(&encode_schema(&wide).unwrap(), &limits), Err(InlineError::Metadata { .. })));

    let nested = |levels| {
        let list = |item, _| DataType::List(Arc::new(Field::new("item", item, true)));
        encode_schema(&Schema::new(vec![Field::new("f", (1..levels).fold(DataType::Int8, list), true)]))
    };
    // The verifier of flatbuffers allows slightly less depth than layout. The encoder reports that as an error, so the
    // borrower never receives such a schema.
    assert!(nested(MAX_DEPTH - 4).is_ok(), "{:?}", nested(MAX_DEPTH - 4));
    assert!(matches!(nested(MAX_DEPTH), Err(InlineError::Flatbuffer { .. })));
    assert!(matches!(nested(MAX_DEPTH + 1), Err(InlineError::Layout(_))));
}

/// Arrow's own encoder leaves such a time zone out, so that the type would change on its way.
#[test]
fn a_time_zone_is_not_empty() {
    let zoned = DataType::Timestamp(TimeUnit::Millisecond, Some("X".into()));
    let schema = Schema::new(vec![Field::new("at", zoned, true)]);
    let mut message = encode_schema(&schema).unwrap().to_vec();
    let limits = InlineLimits::default();
    assert_eq!(*decode_schema(&message, &limits).unwrap(), schema);
    // A string of a flatbuffer is its length and its bytes.
    let zone = message.windows(5).position(|bytes| bytes == [1, 0, 0, 0, b'X']).unwrap();
    message[zone..zone + 5].fill(0);
    let error = decode_schema(&message, &limits).unwrap_err();
    assert!(error.to_string().contains("empty time zone"), "{error}");
}
