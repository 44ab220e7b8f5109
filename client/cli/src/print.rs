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
    print_message(format_args!("error: {failure}"));
    if let Some(hint) = failure.hint() {
        print_message(format_args!("hint: {hint}"));
    }
}

/// Removes control characters: text from a server must not control the terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_server_does_not_control_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\r\n\tc"), "a\u{fffd}[2Jb\u{fffd}\n\tc");
    }
}
