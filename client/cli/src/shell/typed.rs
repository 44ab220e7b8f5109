//! Text that the user types, in lines of the terminal.

use std::io::{self, BufRead, Write};

use super::input::is_complete;
use crate::failure::Failure;

/// Text that the user typed.
pub(super) enum Typed {
    /// A command, or statements that are complete.
    Text(String),
    /// Ctrl-D.
    End,
}

/// Reads from the terminal.
pub(super) struct Typist {
    screen: console::Term,
}

impl Typist {
    pub(super) fn new() -> Self {
        Typist { screen: console::Term::stderr() }
    }

    /// Lines of the screen, if it is known.
    pub(super) fn screen_lines(&self) -> usize {
        // A serial console may report a height of zero lines.
        let lines = self.screen.size_checked().map(|(lines, _columns)| lines).filter(|lines| *lines > 0);
        lines.map_or(usize::MAX, usize::from)
    }

    /// Reads until the text is complete.
    ///
    /// # Errors
    /// [`Failure::Local`] if the terminal cannot be read.
    pub(super) fn read(&self) -> Result<Typed, Failure> {
        let failed = |source| Failure::Local { what: "cannot read standard input".into(), source };
        let mut text = String::new();
        loop {
            // A terminal that cannot be written can still be read.
            let _ = write!(io::stderr(), "{}", if text.is_empty() { "thallus> " } else { "      -> " });
            if io::stdin().lock().read_line(&mut text).map_err(failed)? == 0 {
                return Ok(Typed::End);
            }
            if is_complete(&text) {
                return Ok(Typed::Text(text));
            }
        }
    }
}
