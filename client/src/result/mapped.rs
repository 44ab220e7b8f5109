//! Arrays over the server's memory.

use arrow::array::RecordBatch;
use thallus_fabric::memory::UncheckedAssembler;
use thallus_protocol::layout;
use tracing::warn;

use crate::driver::MappedBatch;
use crate::report::TransferReport;

/// Builds and validates a batch where it lies. What has to differ from what the server has, such as offsets of a slice or views,
/// is rewritten in memory of this process, by [`layout::rebuild_with`]: the buffer in question is replaced, and nothing else is
/// copied. It is validated once, like a batch that was read; unlike that, it stays in memory that the server could write to.
/// Whoever asks for mapped results trusts the server not to change what it has lent.
pub(super) fn build(batch: MappedBatch, report: &mut TransferReport) -> Result<RecordBatch, String> {
    let (descriptor, buffers) = batch.into_parts();
    report.batches_mapped += 1;
    report.bytes_mapped += descriptor.live_bytes();
    layout::rebuild_with(&descriptor, &buffers, &UncheckedAssembler).map_err(|error| error.to_string())
}

/// A batch came inline that is not small, though batches were to be mapped: that is not to go unsaid.
pub(super) fn warn_of_inline(mapped_from: &mut Option<u64>, bytes: u64, report: &TransferReport) {
    // Arrow IPC takes up more than what it holds.
    if mapped_from.is_some_and(|from| bytes > from.saturating_mul(2)) {
        *mapped_from = None;
        let mapped = report.bytes_mapped;
        warn!(bytes, mapped, "a batch comes inline: what is mapped and held takes up what the server may have on loan");
    }
}
