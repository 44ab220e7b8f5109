//! Compares the uploads that clients offer with those that the engine keeps: an upload is kept whole and once, or not
//! at all.

use std::sync::{Mutex, MutexGuard, PoisonError};

use arrow_array::RecordBatch;
use thallus_scripted_engine::ScriptedEngine;

use crate::scripts::TABLES;
use crate::trace::Trace;

/// An upload that a client offered.
struct Offered {
    /// The batches. No two uploads of a run have the same.
    batches: Vec<RecordBatch>,
    /// Whether the engine may keep the upload: its source ends without an error, and its table accepts uploads.
    may_be_kept: bool,
    kept: bool,
}

/// All uploads of a run.
#[derive(Default)]
pub struct Ledger(Mutex<Vec<Offered>>);

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Vec<Offered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the batches that a client offers. Returns the number of the upload.
    pub fn offer(&self, batches: Vec<RecordBatch>, may_be_kept: bool) -> usize {
        let mut offered = self.lock();
        offered.push(Offered { batches, may_be_kept, kept: false });
        offered.len() - 1
    }

    /// Takes the newly kept uploads from the engine and compares them with the offered ones.
    pub fn collect(&self, engine: &ScriptedEngine, trace: &Trace) {
        let kept = TABLES.iter().flat_map(|table| engine.take_uploads(table));
        for batches in kept {
            trace.count("upload", "kept");
            let mut offered = self.lock();
            match offered.iter_mut().find(|offered| offered.batches == batches) {
                None => {
                    let rows: Vec<_> = batches.iter().map(RecordBatch::num_rows).collect();
                    let how = format!("the engine keeps an upload that no client offered, of {rows:?} rows");
                    trace.violated("exact batches in order", how);
                }
                Some(offered) if !offered.may_be_kept => {
                    trace.violated("an upload that fails is not kept", "the engine keeps one");
                }
                Some(offered) => {
                    if std::mem::replace(&mut offered.kept, true) {
                        trace.violated("an upload is kept once", "the engine keeps one twice");
                    }
                }
            }
        }
    }

    /// Whether the engine has kept the upload of this number.
    pub fn is_kept(&self, upload: usize) -> bool {
        self.lock()[upload].kept
    }
}
