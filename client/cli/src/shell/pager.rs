//! Shows text on a terminal: through a pager if it is longer than the screen.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::stdout;

/// The pager, if `PAGER` names none.
const PAGER: &str = "less -FRSX";

/// Shows a text from its begin.
///
/// # Errors
/// [`Failure::Local`] if standard output cannot be written.
pub(super) fn show(mut text: File, screen_lines: usize) -> Result<(), Failure> {
    let failed = |source| Failure::Local { what: "cannot write to standard output".into(), source };
    text.rewind().map_err(failed)?;
    let is_long = BufReader::new(&text).split(b'\n').take(screen_lines).count() >= screen_lines;
    text.rewind().map_err(failed)?;
    if is_long && paged(&text).map_err(failed)? {
        return Ok(());
    }
    text.rewind().map_err(failed)?;
    let mut terminal = stdout::open().map_err(failed)?;
    io::copy(&mut text, &mut terminal).map(|_| ()).map_err(failed)
}

/// Runs the pager on a text. Returns whether there is a pager.
fn paged(text: &File) -> io::Result<bool> {
    let pager = std::env::var("PAGER").ok().filter(|pager| !pager.trim().is_empty());
    let pager = pager.unwrap_or_else(|| PAGER.to_owned());
    let mut shell = Command::new("sh");
    shell.args(["-c", &pager]).stdin(text.try_clone()?).stdout(Stdio::from(stdout::open()?));
    // A shell without the pager ends with 127. A pager that the user leaves may end with any other code.
    Ok(shell.status().is_ok_and(|status| status.code() != Some(127)))
}
