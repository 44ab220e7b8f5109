//! The commands of the shell, which begin with a backslash.

use crate::names::parts;

/// The text of `\?`.
pub(super) const HELP: &str = "\
A statement ends with ; and may have several lines. Ctrl-C stops a statement, Ctrl-D leaves.
  \\d          the tables
  \\d TABLE    the columns of a table
  \\timing     show the duration of each statement, or no longer
  \\x          show each value on a line of its own, or no longer
  \\q          leave
  \\?          this text
";

/// A command of the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ShellCommand {
    Tables,
    /// A table: the parts of its name.
    Columns(Vec<String>),
    Timing,
    Expanded,
    Quit,
    Help,
}

impl ShellCommand {
    /// The command on a line.
    ///
    /// # Errors
    /// The text is no command: what is wrong.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim().trim_end_matches(';').trim_end();
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let command = match (name, argument.trim()) {
            ("\\d", "") => ShellCommand::Tables,
            ("\\d", table) => return Ok(ShellCommand::Columns(parts(table))),
            ("\\timing", _) => ShellCommand::Timing,
            ("\\x", _) => ShellCommand::Expanded,
            ("\\q", _) => ShellCommand::Quit,
            ("\\?" | "\\h" | "\\help", _) => ShellCommand::Help,
            (other, _) => return Err(format!("{other} is no command; \\? lists the commands")),
        };
        match argument.trim() {
            "" => Ok(command),
            argument => Err(format!("{name} takes no argument, but has {argument:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_words_after_a_backslash() {
        for (line, command) in [
            (" \\d ", ShellCommand::Tables),
            ("\\d;", ShellCommand::Tables),
            ("\\d Server.\"Tables\"", ShellCommand::Columns(vec!["server".into(), "Tables".into()])),
            ("\\timing", ShellCommand::Timing),
            ("\\x", ShellCommand::Expanded),
            ("\\q", ShellCommand::Quit),
            ("\\?", ShellCommand::Help),
        ] {
            assert_eq!(ShellCommand::parse(line), Ok(command), "{line}");
        }
        assert_eq!(ShellCommand::parse("\\dt"), Err("\\dt is no command; \\? lists the commands".into()));
        assert_eq!(ShellCommand::parse("\\x on"), Err("\\x takes no argument, but has \"on\"".into()));
    }
}
