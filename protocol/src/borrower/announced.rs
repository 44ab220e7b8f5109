//! Checks of what a lender announces.

use arrow_schema::Schema;

use crate::codec::MAX_KEY;
use crate::ids::{RemoteRange, StreamId};
use crate::message::{Lending, MAX_SORT_KEYS, Region, SortKey};
use crate::misbehaviour::PeerMisbehaved;

/// Checks the lease words that a lender announces.
pub(super) fn check_lending(lending: &Lending) -> Result<(), PeerMisbehaved> {
    if !is_word(lending.probe_at) {
        let RemoteRange { region, address, len } = lending.probe_at;
        return Err(PeerMisbehaved::OutsideRegion { region, address, len });
    }
    check_region(&lending.words)
}

/// Checks that the sort keys name existing columns, because the merge of partitions relies on this.
pub(super) fn check_order(stream: StreamId, order: &[SortKey], schema: &Schema) -> Result<(), PeerMisbehaved> {
    let (value, limit) = (order.len() as u64, MAX_SORT_KEYS as u64);
    if value > limit {
        return Err(PeerMisbehaved::Limit { what: "sort keys", value, limit });
    }
    match order.iter().find(|key| key.column as usize >= schema.fields().len()) {
        Some(key) => {
            let reason = format!("sorted by column {} of {}", key.column, schema.fields().len());
            Err(PeerMisbehaved::Schema { stream, reason })
        }
        None => Ok(()),
    }
}

/// Whether a range is eight aligned bytes.
pub(super) fn is_word(range: RemoteRange) -> bool {
    range.len == 8 && range.address.is_multiple_of(8)
}

pub(super) fn check_region(region: &Region) -> Result<(), PeerMisbehaved> {
    let (value, limit) = (region.key.len() as u64, MAX_KEY as u64);
    if value > limit {
        return Err(PeerMisbehaved::Limit { what: "remote key bytes", value, limit });
    }
    if region.base.checked_add(region.len).is_none() {
        let Region { id, base, len, .. } = *region;
        return Err(PeerMisbehaved::OutsideRegion { region: id, address: base, len });
    }
    Ok(())
}
