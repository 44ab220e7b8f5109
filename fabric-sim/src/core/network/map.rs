//! Mapped memory. A mapping is a copy, which is compared with the lender's memory when it is dropped. So a simulation
//! is sound and reproducible, and still finds a lender that reuses mapped memory.

use std::sync::Weak;

use thallus_fabric::memory::RegisteredMemory;

use super::super::{Access, EndpointId, HostId, KeyId, Violation, What};
use super::{Core, EndpointState, Standing};

/// A mapping of a reader.
#[derive(Debug)]
pub struct Mapping {
    reader: EndpointId,
    lender: HostId,
    key: KeyId,
    address: u64,
    bytes: Vec<u8>,
    /// The memory and offset at the lender; `None` if the mapping was too late, and shows invented bytes.
    source: Option<(Weak<RegisteredMemory>, usize)>,
}

impl Mapping {
    /// The bytes at the time of the mapping.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Core {
    /// Maps `len` bytes at `address`, if the memory protection allows it. The caller passes the mapping to
    /// [`Core::unmap`] later.
    ///
    /// # Errors
    /// The reason of the refusal.
    pub fn map(&mut self, reader: EndpointId, key: KeyId, address: u64, len: u64) -> Result<Mapping, Access> {
        let exposure = self.protect(reader, key)?;
        let lender = self.endpoints.get(&exposure.by).map(|entry| entry.host).ok_or(Access::Deregistered)?;
        let standing = match self.options.loans {
            true => self.loans.judge(exposure.by, address, len),
            false => Standing::OnLoan(None, false),
        };
        let (late, lent) = match standing {
            Standing::Late => (true, None),
            Standing::Not => (false, Some(Err(Access::NotOnLoan))),
            Standing::OnLoan(content, _) => (false, content.map(|content| Ok(content.to_vec()))),
        };
        if late {
            self.stats.late += 1;
            let bytes = vec![0xA5; usize::try_from(len).unwrap_or(0)];
            return Ok(Mapping { reader, lender, key, address, bytes, source: None });
        }
        let found = self.memory.open(exposure, address, len).and_then(|(memory, offset)| {
            let bytes = memory.copy_out(offset, usize::try_from(len).unwrap_or(usize::MAX));
            Ok((bytes.ok_or(Access::OutsideMemory)?, std::sync::Arc::downgrade(&memory), offset))
        });
        let access = match (found, lent) {
            (_, Some(Err(access))) | (Err(access), _) => access,
            (Ok((bytes, memory, offset)), lent) => {
                if lent.is_some_and(|lent| lent.as_ref() != Ok(&bytes)) && self.peer_stands(reader) {
                    self.violations.push(Violation { reader, key, address, len, access: Access::Reused });
                }
                self.stats.maps += 1;
                self.note(reader, What::Mapped(len));
                return Ok(Mapping { reader, lender, key, address, bytes, source: Some((memory, offset)) });
            }
        };
        if self.peer_stands(reader) {
            self.violations.push(Violation { reader, key, address, len, access });
        }
        Err(access)
    }

    /// The last slice of a mapping was dropped. It is a violation if its memory changed or was freed meanwhile, even
    /// after the end of the connection, unless the lender's host crashed.
    pub fn unmap(&mut self, mapping: &Mapping) {
        let Some((memory, offset)) = &mapping.source else { return };
        let access = match memory.upgrade() {
            Some(memory) if memory.copy_out(*offset, mapping.bytes.len()).as_ref() == Some(&mapping.bytes) => return,
            Some(_) => Access::Reused,
            None => Access::Deregistered,
        };
        if !self.crashed.contains(&mapping.lender) {
            let Mapping { reader, key, address, ref bytes, .. } = *mapping;
            self.violations.push(Violation { reader, key, address, len: bytes.len() as u64, access });
        }
    }

    /// Whether `reader` can map memory now.
    #[must_use]
    pub fn can_map(&self, reader: EndpointId) -> bool {
        self.state(reader) == Some(EndpointState::Connected) && !self.has_no_path(reader)
    }
}
