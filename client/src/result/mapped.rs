//! Arrays over the server's memory.

use arrow::array::RecordBatch;
use thallus_fabric::memory::UncheckedAssembler;
use thallus_protocol::layout;
use tracing::warn;

use crate::driver::MappedBatch;
use crate::report::TransferReport;

/// Builds and validates a batch in place. Buffers that must differ from the server's, such as the offsets of a slice or
/// views, are rewritten by [`layout::rebuild_with`] in this process's memory; nothing else is copied. The batch is
/// validated once, like a batch that was read. Unlike such a batch, it stays in memory that the server could write to:
/// a client that requests mapped results trusts the server not to change lent batches.
pub(super) fn build(batch: MappedBatch, report: &mut TransferReport) -> Result<RecordBatch, String> {
    let (descriptor, buffers) = batch.into_parts();
    report.batches_mapped += 1;
    report.bytes_mapped += descriptor.live_bytes();
    layout::rebuild_with(&descriptor, &buffers, &UncheckedAssembler).map_err(|error| error.to_string())
}

/// Warns about an inline batch that is not small, although mapped batches were requested.
pub(super) fn warn_of_inline(mapped_from: &mut Option<u64>, bytes: u64, report: &TransferReport) {
    // Arrow IPC takes more bytes than the arrays in it.
    if mapped_from.is_some_and(|from| bytes > from.saturating_mul(2)) {
        *mapped_from = None;
        let mapped = report.bytes_mapped;
        warn!(bytes, mapped, "a batch travelled inline: held mapped batches use up the server's bytes on loan");
    }
}
