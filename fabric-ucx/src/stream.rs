//! Captures text that UCX prints to a C stream, for people.

use std::ffi::c_void;
use std::ptr;
use std::slice;

/// Runs `print` with a C stream and returns the printed text; `None` if there is no memory for it.
pub(crate) fn capture(print: impl FnOnce(*mut c_void)) -> Option<String> {
    let (mut start, mut len) = (ptr::null_mut(), 0);
    // SAFETY: room for both results, which stay where they are until after `fclose`.
    let file = unsafe { libc::open_memstream(&mut start, &mut len) };
    if file.is_null() {
        return None;
    }
    print(file.cast());
    // SAFETY: opened above, closed once. It sets `start` and `len`.
    let closed = unsafe { libc::fclose(file) };
    if start.is_null() {
        return None;
    }
    let text = (closed == 0).then(|| {
        // SAFETY: after a successful `fclose` there are `len` bytes at `start`.
        let bytes = unsafe { slice::from_raw_parts(start.cast::<u8>(), len) };
        String::from_utf8_lossy(bytes).into_owned()
    });
    // SAFETY: allocated by `open_memstream`, which leaves it to the caller.
    unsafe { libc::free(start.cast()) };
    text
}

#[cfg(test)]
mod tests {
    use super::capture;

    #[test]
    fn captures_what_is_printed() {
        // SAFETY: an open stream and a C string.
        let text = capture(|file| unsafe {
            libc::fputs(c"lane".as_ptr(), file.cast());
        });
        assert_eq!(text.as_deref(), Some("lane"));
        assert_eq!(capture(|_| ()).as_deref(), Some(""));
    }
}
