//! Writes the seeds: small valid inputs from which the fuzzer starts. The same on every run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_schema::{Field, Schema};
use thallus_fuzz::{layout_input, schemas, with_part};
use thallus_protocol::inline::InlineEncoder;
use thallus_protocol::testing::{Dice, all_types, batch};

fn folder(target: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&folder).expect("the seeds' folder can be made");
    folder
}

fn main() {
    let (layout, inline, schema_only) = (folder("layout_rebuild"), folder("inline_decode"), folder("schema_decode"));
    for (index, schema) in schemas().iter().enumerate() {
        let batch = batch(schema, 5, &mut Dice::new(index as u64));
        fs::write(layout.join(format!("{index:03}")), layout_input(index, &batch)).expect("seeds can be written");
    }
    // Several columns to a file: a schema's message is much longer than a small batch's buffers.
    for (index, types) in all_types().chunks(4).enumerate() {
        let fields = types.iter().map(|data_type| Field::new("f", data_type.clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let (mut encoder, message) = InlineEncoder::new(&schema).expect("IPC carries these");
        let encoded = encoder.encode(&batch(&schema, 3, &mut Dice::new(index as u64))).expect("valid");
        fs::write(inline.join(format!("{index:03}")), with_part(&message, &encoded)).expect("seeds can be written");
        fs::write(schema_only.join(format!("{index:03}")), message).expect("seeds can be written");
    }
}
