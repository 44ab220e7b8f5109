//! The limits of Arrow files.

/// The limits of the files of tables.
pub(super) const IPC_LIMITS: IpcLimits = IpcLimits { max_batch_bytes: 2 << 30, max_rows: i32::MAX as usize };

#[derive(Clone, Copy, Debug)]
pub(super) struct IpcLimits {
    /// Most bytes that one batch may take in memory, decompressed. While it is decompressed its body is in memory too,
    /// which has at most as many.
    pub(super) max_batch_bytes: u64,
    pub(super) max_rows: usize,
}
