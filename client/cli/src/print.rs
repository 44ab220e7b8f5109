//! Text for the user, on standard output and on stderr.

use std::fmt;
use std::io::{self, Write};

use super::failure::Failure;
use super::stdout;

pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let written = stdout::open().and_then(|mut stdout| stdout.write_all(plain(text).as_bytes()));
    written.map_err(|source| match source.kind() {
        io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
        _ => Failure::Local { what: "cannot write to standard output".into(), source },
    })
}

/// Prints one message on stderr. If stderr is closed, the message is lost.
pub(crate) fn print_message(message: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{}", plain(&message.to_string()));
}

pub(crate) fn print_failure(failure: &Failure) {
    if matches!(failure, Failure::BrokenPipe) {
        return;
    }
    print_message(format_args!("error: {}", indented(&failure.to_string())));
    if let Some(hint) = failure.hint() {
        print_message(format_args!("hint: {hint}"));
    }
}

/// The text with its further lines indented: those of a server must not look like lines of this program.
fn indented(text: &str) -> String {
    text.replace('\n', "\n  ")
}

/// Replaces control characters and marks that reorder text: text from a server must not control the terminal.
fn plain(text: &str) -> String {
    let is_bad = |c: char| match c {
        '\n' | '\t' => false,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        c => c.is_control(),
    };
    text.chars().map(|c| if is_bad(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_server_does_not_control_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\r\n\tc\u{202e}"), "a\u{fffd}[2Jb\u{fffd}\n\tc\u{fffd}");
        assert_eq!(indented("no such table\nhint: run rm"), "no such table\n  hint: run rm");
    }
}
