//! Parameters of a statement: a schema and one batch in the bytes of one request.
//!
//! The bytes are the length of the schema message (`u32`, little-endian), the schema message, and the batch as
//! [`InlineEncoder`](super::InlineEncoder) makes it.

use arrow_array::RecordBatch;
use bytes::Bytes;

use super::{InlineDecoder, InlineEncoder, InlineError, InlineLimits};

/// Limits of the schema and of the elements: 60 KiB have room for the bits of as many booleans. Arrow expands validity
/// bitmaps to the items of fixed-size lists, which may have no bytes of their own.
const LIMITS: InlineLimits = InlineLimits { max_len: 512 << 10, max_fields: 4096 };

/// Most rows of the parameters of one request. A row of nulls needs no bytes, so that bytes alone are no limit.
const MAX_ROWS: usize = 64 << 10;

/// The bytes of these parameters.
///
/// # Errors
/// Arrow IPC cannot carry a type of theirs.
pub fn encode_parameters(batch: &RecordBatch) -> Result<Bytes, InlineError> {
    let (mut encoder, schema) = InlineEncoder::new(batch.schema_ref())?;
    let length = u32::try_from(schema.len()).map_err(|_| InlineError::metadata("the schema is 4 GiB or longer"))?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&schema);
    bytes.extend_from_slice(&encoder.encode(batch)?);
    Ok(bytes.into())
}

/// The parameters in these bytes, validated.
///
/// # Errors
/// The bytes are not those of [`encode_parameters`], or exceed the limits.
pub fn decode_parameters(bytes: &Bytes) -> Result<RecordBatch, InlineError> {
    let cut_off = |what, needed: usize, got| InlineError::CutOff { what, needed: needed as u64, got: got as u64 };
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Err(cut_off("the length of the schema", 4, bytes.len()));
    };
    let length = u32::from_le_bytes(*length) as usize;
    if rest.len() < length {
        return Err(cut_off("the schema", length, rest.len()));
    }
    let mut decoder = InlineDecoder::new(&rest[..length], LIMITS)?;
    let batch = decoder.decode(bytes.slice(4 + length..))?;
    if batch.num_rows() > MAX_ROWS {
        let message = format!("{} rows of parameters, the limit is {MAX_ROWS} rows a request", batch.num_rows());
        return Err(InlineError::metadata(message));
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int64Array, NullArray, StringArray};

    use super::*;

    fn two_rows() -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["one", "two"]));
        RecordBatch::try_from_iter_with_nullable([("0", numbers, true), ("1", texts, true)]).unwrap()
    }

    #[test]
    fn parameters_come_back_equal() {
        let bytes = encode_parameters(&two_rows()).unwrap();
        assert_eq!(decode_parameters(&bytes).unwrap(), two_rows());
    }

    #[test]
    fn a_cut_anywhere_is_an_error() {
        let bytes = encode_parameters(&two_rows()).unwrap();
        for length in 0..bytes.len() {
            let cut = bytes.slice(..length);
            assert!(decode_parameters(&cut).is_err(), "{length} of {} bytes", bytes.len());
        }
    }

    #[test]
    fn rows_without_bytes_are_limited() {
        let nulls: ArrayRef = Arc::new(NullArray::new(MAX_ROWS + 1));
        let bytes = encode_parameters(&RecordBatch::try_from_iter([("0", nulls)]).unwrap()).unwrap();
        let error = decode_parameters(&bytes).unwrap_err();
        assert!(error.to_string().contains("65537 rows of parameters"), "{error}");
    }
}
