//! The functions that the shared library exports, and the only unsafe code of this crate.
//!
//! `adbc_ffi` exports the driver's methods as C functions. This module adds what it leaves out:
//!
//! - An error in the middle of a result keeps its status and SQLSTATE, for `AdbcErrorFromArrayStream`.
//! - A statement that changes rows reports their number with its empty result.
//! - Arrays of a result are not released in a forked child, and keep the connection of a mapped result.

#![allow(unsafe_code)]

use std::any::Any;
use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, LazyLock};

use adbc_core::constants::{ADBC_STATUS_OK, ADBC_VERSION_1_1_0};
use adbc_core::error::{AdbcStatusCode, Error, Status};
use adbc_ffi::{FFI_AdbcConnection, FFI_AdbcDriver, FFI_AdbcError, FFI_AdbcStatement, FFIDriver, export_error};
use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema};
use arrow::ffi_stream::FFI_ArrowArrayStream;
use thallus_fabric::memory::process_id;

use crate::driver::ThallusDriver;
use crate::error::{error, invalid_argument, not_implemented};
use crate::reader::{Handover, with_handover};

/// The functions that `adbc_ffi` exports, two of which this module's call.
static EXPORTED: LazyLock<FFI_AdbcDriver> = LazyLock::new(ThallusDriver::ffi_driver);

/// Fills a table of functions of ADBC 1.1, as driver managers ask for.
///
/// # Safety
/// `driver` is null or has room for an `AdbcDriver` of version 1.1. `error` is null, or an `AdbcError` that is zeroed
/// or was filled by a driver.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn AdbcDriverThallusInit(
    version: c_int,
    driver: *mut c_void,
    error: *mut FFI_AdbcError,
) -> AdbcStatusCode {
    if version != ADBC_VERSION_1_1_0 {
        let message = format!("this driver has the functions of ADBC 1.1.0, and not of version {version}");
        // SAFETY: the caller's promise about `error`.
        return unsafe { refuse(error, not_implemented(message)) };
    }
    if driver.is_null() {
        // SAFETY: the caller's promise about `error`.
        return unsafe { refuse(error, invalid_argument("no table of functions to fill")) };
    }
    let mut table = ThallusDriver::ffi_driver();
    table.StatementExecuteQuery = Some(statement_execute_query);
    table.ConnectionReadPartition = Some(connection_read_partition);
    table.ErrorFromArrayStream = Some(error_from_array_stream);
    // SAFETY: the caller promises room for a table of this version. Nothing is dropped there, as the memory may
    // be uninitialized; the alignment of a `void` pointer is not known.
    unsafe { ptr::write_unaligned(driver.cast::<FFI_AdbcDriver>(), table) };
    ADBC_STATUS_OK
}

/// The same as [`AdbcDriverThallusInit`], for managers that do not derive the name from the library's.
///
/// # Safety
/// As [`AdbcDriverThallusInit`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn AdbcDriverInit(
    version: c_int,
    driver: *mut c_void,
    error: *mut FFI_AdbcError,
) -> AdbcStatusCode {
    // SAFETY: the caller's promises are the same.
    unsafe { AdbcDriverThallusInit(version, driver, error) }
}

/// # Safety
/// `out` is null, or an `AdbcError` that is zeroed or was filled by a driver.
unsafe fn refuse(out: *mut FFI_AdbcError, error: Error) -> AdbcStatusCode {
    let status = error.status.into();
    // SAFETY: the caller's promise.
    unsafe { export_error(out, error) };
    status
}

/// `AdbcStatementExecuteQuery`.
unsafe extern "C" fn statement_execute_query(
    statement: *mut FFI_AdbcStatement,
    out: *mut FFI_ArrowArrayStream,
    rows_affected: *mut i64,
    error: *mut FFI_AdbcError,
) -> AdbcStatusCode {
    let Some(execute) = EXPORTED.StatementExecuteQuery else { return Status::NotImplemented.into() };
    // SAFETY: the arguments are the caller's, for the same function of ADBC.
    let (status, facts) = with_handover(|| unsafe { execute(statement, out, rows_affected, error) });
    if status == ADBC_STATUS_OK && !out.is_null() {
        if let Some(rows) = facts.rows_affected.filter(|_| !rows_affected.is_null()) {
            // SAFETY: it is not null, so the caller has given room for the number.
            unsafe { ptr::write_unaligned(rows_affected, rows) };
        }
        // SAFETY: the call succeeded, so it has written a stream.
        unsafe { ExportedStream::wrap(out, facts) };
    }
    status
}

/// `AdbcConnectionReadPartition`.
unsafe extern "C" fn connection_read_partition(
    connection: *mut FFI_AdbcConnection,
    partition: *const u8,
    length: usize,
    out: *mut FFI_ArrowArrayStream,
    error: *mut FFI_AdbcError,
) -> AdbcStatusCode {
    let Some(read) = EXPORTED.ConnectionReadPartition else { return Status::NotImplemented.into() };
    // SAFETY: the arguments are the caller's, for the same function of ADBC.
    let (status, facts) = with_handover(|| unsafe { read(connection, partition, length, out, error) });
    if status == ADBC_STATUS_OK && !out.is_null() {
        // SAFETY: the call succeeded, so it has written a stream.
        unsafe { ExportedStream::wrap(out, facts) };
    }
    status
}

/// `AdbcErrorFromArrayStream`: the error that ended a stream of this driver. It lives as long as the stream.
unsafe extern "C" fn error_from_array_stream(
    stream: *mut FFI_ArrowArrayStream,
    status: *mut AdbcStatusCode,
) -> *const FFI_AdbcError {
    // SAFETY: the caller gives a stream, or null.
    let Some(found) = (unsafe { ExportedStream::of(stream) }) else { return ptr::null() };
    let Some((code, error)) = &mut found.error else { return ptr::null() };
    if !status.is_null() {
        // SAFETY: it is not null, so the caller has given room for the status.
        unsafe { ptr::write_unaligned(status, *code) };
    }
    ptr::from_mut(&mut **error)
}

/// A result's stream, around the stream that arrow makes of a reader.
struct ExportedStream {
    inner: FFI_ArrowArrayStream,
    facts: Handover,
    /// The error that ended the result. Boxed, since C has a pointer to it.
    error: Option<(AdbcStatusCode, Box<FFI_AdbcError>)>,
    /// Its message.
    message: Option<CString>,
}

impl ExportedStream {
    /// Puts the wrapper in the place of the stream.
    ///
    /// # Safety
    /// `stream` is a stream that was just written, and that has no other user.
    unsafe fn wrap(stream: *mut FFI_ArrowArrayStream, facts: Handover) {
        // SAFETY: a stream is there, and it is overwritten below without a drop: it has one owner.
        let inner = unsafe { ptr::read_unaligned(stream) };
        let wrapper = Box::new(ExportedStream { inner, facts, error: None, message: None });
        let outer = FFI_ArrowArrayStream {
            get_schema: Some(stream_get_schema),
            get_next: Some(stream_get_next),
            get_last_error: Some(stream_get_last_error),
            release: Some(stream_release),
            private_data: Box::into_raw(wrapper).cast(),
        };
        // SAFETY: the place is writable, as a stream was written to it.
        unsafe { ptr::write_unaligned(stream, outer) };
    }

    /// The wrapper of a stream, unless it is another driver's or has been released.
    ///
    /// # Safety
    /// `stream` is null or a stream that no other thread uses.
    unsafe fn of<'a>(stream: *mut FFI_ArrowArrayStream) -> Option<&'a mut ExportedStream> {
        // SAFETY: the caller's promise.
        let stream = unsafe { stream.as_mut() }?;
        let release = stream.release?;
        let is_own = ptr::fn_addr_eq(release, stream_release as unsafe extern "C" fn(*mut FFI_ArrowArrayStream));
        // SAFETY: streams with this function have a wrapper, from `wrap`, until it is called.
        if is_own { unsafe { stream.private_data.cast::<ExportedStream>().as_mut() } } else { None }
    }

    /// Keeps the error that the reader reported, and returns the number for it.
    fn fail(&mut self, code: c_int) -> c_int {
        let failed = self.facts.failure.get().unwrap_or_else(|| {
            error(Status::Internal, format!("the stream of a result ended in error {code} without a reason"))
        });
        let number = errno(failed.status);
        self.message = CString::new(failed.message.replace('\0', " ")).ok();
        let (status, mut exported) = (failed.status.into(), Box::new(FFI_AdbcError::default()));
        // SAFETY: the default is an empty error of version 1.1.
        unsafe { export_error(&raw mut *exported, failed) };
        self.error = Some((status, exported));
        number
    }
}

/// The error number for a status: consumers without ADBC know only these.
fn errno(status: Status) -> c_int {
    match status {
        Status::Cancelled => libc::ECANCELED,
        Status::Timeout => libc::ETIMEDOUT,
        Status::NotFound => libc::ENOENT,
        Status::AlreadyExists => libc::EEXIST,
        Status::NotImplemented => libc::ENOSYS,
        Status::Unauthenticated | Status::Unauthorized => libc::EACCES,
        Status::InvalidArguments | Status::InvalidState | Status::InvalidData | Status::Integrity => libc::EINVAL,
        Status::Ok | Status::Unknown | Status::Internal | Status::IO => libc::EIO,
    }
}

/// The number for a stream that was released.
const RELEASED: c_int = libc::EINVAL;

unsafe extern "C" fn stream_get_schema(stream: *mut FFI_ArrowArrayStream, out: *mut FFI_ArrowSchema) -> c_int {
    // SAFETY: the consumer gives its stream, which it uses from one thread at a time.
    let Some(found) = (unsafe { ExportedStream::of(stream) }) else { return RELEASED };
    let Some(get_schema) = found.inner.get_schema else { return RELEASED };
    // SAFETY: the inner stream is owned by the wrapper and not released; `out` is the consumer's.
    let code = unsafe { get_schema(&raw mut found.inner, out) };
    if code == 0 { 0 } else { found.fail(code) }
}

unsafe extern "C" fn stream_get_next(stream: *mut FFI_ArrowArrayStream, out: *mut FFI_ArrowArray) -> c_int {
    // SAFETY: the consumer gives its stream, which it uses from one thread at a time.
    let Some(found) = (unsafe { ExportedStream::of(stream) }) else { return RELEASED };
    let Some(get_next) = found.inner.get_next else { return RELEASED };
    // SAFETY: the inner stream is owned by the wrapper and not released; `out` is the consumer's.
    let code = unsafe { get_next(&raw mut found.inner, out) };
    if code != 0 {
        return found.fail(code);
    }
    // SAFETY: the call succeeded, so it has written an array, or an empty one at the end.
    unsafe { HeldArray::wrap(out.cast(), found.facts.keep.clone()) };
    0
}

unsafe extern "C" fn stream_get_last_error(stream: *mut FFI_ArrowArrayStream) -> *const c_char {
    // SAFETY: the consumer gives its stream, which it uses from one thread at a time.
    let found = unsafe { ExportedStream::of(stream) };
    found.and_then(|found| found.message.as_ref()).map_or(ptr::null(), |message| message.as_ptr())
}

unsafe extern "C" fn stream_release(stream: *mut FFI_ArrowArrayStream) {
    // SAFETY: the consumer gives its stream, which it uses from one thread at a time.
    let Some(found) = (unsafe { ExportedStream::of(stream) }) else { return };
    // SAFETY: the wrapper was boxed by `wrap`. The stream is marked as released below, so it is freed once.
    let wrapper = unsafe { Box::from_raw(ptr::from_mut(found)) };
    // SAFETY: `of` has found a stream there.
    unsafe {
        (*stream).release = None;
        (*stream).private_data = ptr::null_mut();
    }
    // The reader within leaks what it must not drop in a forked child.
    drop(wrapper);
}

/// `struct ArrowArray`, whose fields arrow keeps to itself. The C data interface fixes its layout.
#[repr(C)]
struct RawArray {
    length: i64,
    null_count: i64,
    offset: i64,
    n_buffers: i64,
    n_children: i64,
    buffers: *mut *const c_void,
    children: *mut *mut RawArray,
    dictionary: *mut RawArray,
    release: Option<unsafe extern "C" fn(*mut RawArray)>,
    private_data: *mut c_void,
}

const _: () = assert!(size_of::<RawArray>() == size_of::<FFI_ArrowArray>());

/// An array that the application holds. Dropping it releases the array.
struct HeldArray {
    // Dropped before the connection over which it is released.
    _inner: FFI_ArrowArray,
    _keep: Option<Arc<dyn Any + Send + Sync>>,
    process: u32,
}

impl HeldArray {
    /// Puts the wrapper in the place of the array: the same buffers and children, and another release function.
    ///
    /// # Safety
    /// `array` is an array that was just written, and that has no other user.
    unsafe fn wrap(array: *mut RawArray, keep: Option<Arc<dyn Any + Send + Sync>>) {
        // SAFETY: an array is there.
        let array = unsafe { &mut *array };
        if array.release.is_none() {
            return;
        }
        // SAFETY: both types have the layout of the C data interface. From here on the copy is the owner: the array's
        // own release function below releases the copy.
        let inner = unsafe { ptr::read(ptr::from_mut(array).cast::<FFI_ArrowArray>()) };
        let held = Box::new(HeldArray { _inner: inner, _keep: keep, process: process_id() });
        array.release = Some(array_release);
        array.private_data = Box::into_raw(held).cast();
    }
}

unsafe extern "C" fn array_release(array: *mut RawArray) {
    // SAFETY: the consumer gives an array that it has not released.
    let Some(array) = (unsafe { array.as_mut() }) else { return };
    array.release = None;
    // SAFETY: arrays with this function have a wrapper, from `wrap`; the array is now marked as released, so the
    // wrapper is freed once. A consumer may have moved children out: they are shared with the copy, and marked there.
    let held = unsafe { Box::from_raw(array.private_data.cast::<HeldArray>()) };
    array.private_data = ptr::null_mut();
    if held.process != process_id() {
        // Locks that the release needs may be held by threads that only the parent has.
        std::mem::forget(held);
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, RecordBatchReader, StructArray};
    use arrow::ffi::to_ffi;
    use arrow::ffi_stream::ArrowArrayStreamReader;

    use super::*;
    use crate::reader::of_batch;

    fn batch() -> RecordBatch {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        RecordBatch::try_from_iter([("n", column)]).unwrap()
    }

    fn wrapped(keep: &Arc<()>) -> FFI_ArrowArrayStream {
        let mut stream = FFI_ArrowArrayStream::new(of_batch(batch()));
        let facts = Handover { keep: Some(Arc::clone(keep) as Arc<dyn Any + Send + Sync>), ..Handover::default() };
        // SAFETY: a stream of this function.
        unsafe { ExportedStream::wrap(&raw mut stream, facts) };
        stream
    }

    #[test]
    fn a_wrapped_stream_yields_the_same_batches_and_its_arrays_keep_what_they_need() {
        let keep = Arc::new(());
        let mut stream = wrapped(&keep);
        // SAFETY: the reader takes the stream, which is then marked as released.
        let mut reader = unsafe { ArrowArrayStreamReader::from_raw(&raw mut stream) }.unwrap();
        assert_eq!(reader.schema(), batch().schema());
        let first = reader.next().unwrap().unwrap();
        assert_eq!(first, batch());
        assert!(reader.next().is_none());
        drop(reader);
        assert_eq!(Arc::strong_count(&keep), 2);
        drop(first);
        assert_eq!(Arc::strong_count(&keep), 1);
    }

    #[test]
    fn streams_of_others_and_released_ones_have_no_error_and_no_data() {
        let mut other = FFI_ArrowArrayStream::new(of_batch(batch()));
        let mut released = wrapped(&Arc::new(()));
        // SAFETY: streams of this function, one of which is released twice.
        unsafe {
            assert!(error_from_array_stream(&raw mut other, ptr::null_mut()).is_null());
            assert!(error_from_array_stream(ptr::null_mut(), ptr::null_mut()).is_null());
            stream_release(&raw mut released);
            stream_release(&raw mut released);
            assert!(error_from_array_stream(&raw mut released, ptr::null_mut()).is_null());
            assert_eq!(stream_get_next(&raw mut released, ptr::null_mut()), RELEASED);
            assert_eq!(stream_get_schema(&raw mut released, ptr::null_mut()), RELEASED);
            assert!(stream_get_last_error(&raw mut released).is_null());
        }
    }

    #[test]
    fn a_child_that_was_moved_out_outlives_its_array() {
        let keep = Arc::new(());
        let (array, _schema) = to_ffi(&StructArray::from(batch()).into()).unwrap();
        let mut array = std::mem::ManuallyDrop::new(array);
        let raw: *mut RawArray = (&raw mut *array).cast();
        // SAFETY: the array of this function, used as a consumer of the C data interface does: the child is moved out,
        // the array is released, then the child.
        unsafe {
            HeldArray::wrap(raw, Some(Arc::clone(&keep) as Arc<dyn Any + Send + Sync>));
            let child = *(*raw).children;
            let mut moved = ptr::read(child);
            (*child).release = None;
            array_release(raw);
            assert!((*raw).release.is_none());
            assert_eq!(*(*moved.buffers.add(1)).cast::<i64>().add(2), 3);
            let release = moved.release.unwrap();
            release(&raw mut moved);
        }
        assert_eq!(Arc::strong_count(&keep), 1);
    }

    #[test]
    fn an_array_inherited_by_another_process_is_leaked() {
        let keep = Arc::new(());
        let (array, _schema) = to_ffi(&StructArray::from(batch()).into()).unwrap();
        let mut array = std::mem::ManuallyDrop::new(array);
        let raw: *mut RawArray = (&raw mut *array).cast();
        // SAFETY: the array of this function.
        unsafe {
            HeldArray::wrap(raw, Some(Arc::clone(&keep) as Arc<dyn Any + Send + Sync>));
            (*(*raw).private_data.cast::<HeldArray>()).process = process_id().wrapping_add(1);
            array_release(raw);
        }
        assert_eq!(Arc::strong_count(&keep), 2);
    }

    #[test]
    fn other_versions_and_null_tables_are_refused() {
        let mut error = FFI_AdbcError::default();
        let mut table = FFI_AdbcDriver::default();
        let into = (&raw mut table).cast::<c_void>();
        // SAFETY: a table and an error of this function, or null.
        unsafe {
            let status = AdbcDriverThallusInit(1_000_000, into, &raw mut error);
            assert_eq!(status, u8::from(Status::NotImplemented));
            let status = AdbcDriverInit(ADBC_VERSION_1_1_0, ptr::null_mut(), &raw mut error);
            assert_eq!(status, u8::from(Status::InvalidArguments));
            assert_eq!(AdbcDriverInit(ADBC_VERSION_1_1_0, into, ptr::null_mut()), ADBC_STATUS_OK);
        }
        assert!(table.ErrorFromArrayStream.is_some());
    }
}
