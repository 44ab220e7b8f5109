//! `thallus shell`: statements that are typed in, or read from standard input.

mod command;
mod input;
pub(crate) mod listing;
mod pager;
mod session;
mod typed;

use std::io::{self, BufRead, IsTerminal};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use thallus_client::{CatalogObject, Depth, ObjectsRequest};
use thallus_fabric::units::human_duration;

use self::command::{HELP, ShellCommand};
use self::input::{Pending, Statement, is_command};
use self::session::{Session, print_failure, spool};
use self::typed::{Typed, Typist};
use super::args::{ShellArgs, connect_options};
use super::failure::{Failure, code};
use super::format::{self, FormatOptions};
use super::output::Output;
use super::print::print_message;
use super::progress::Progress;
use super::stdout;

/// Time for a list of tables.
const LISTING: Duration = Duration::from_secs(30);

struct Shell {
    session: Session,
    max_rows: usize,
    expanded: bool,
    timing: bool,
    is_typed: bool,
    /// Standard output is a terminal.
    on_terminal: bool,
    screen_lines: usize,
}

/// Runs a shell. Returns the exit code.
///
/// # Errors
/// [`Failure::Client`] if there is no connection at first; failures of standard input.
pub(super) fn run(args: &ShellArgs) -> Result<u8, Failure> {
    let options = connect_options(&args.url)?;
    let is_typed = io::stdin().is_terminal();
    let on_terminal = stdout::open().is_ok_and(|output| output.is_terminal());
    let session = Session::connect(options, is_typed)?;
    let (max_rows, screen_lines) = (args.max_rows, usize::MAX);
    let mut shell = Shell { session, max_rows, expanded: false, timing: false, is_typed, on_terminal, screen_lines };
    let code = if is_typed { shell.converse() } else { shell.read(io::stdin().lock()) };
    shell.session.close();
    code
}

/// Whether the shell goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    Leave,
}

impl Shell {
    /// Runs what the user types, until Ctrl-D. Failures are shown.
    fn converse(&mut self) -> Result<u8, Failure> {
        let version = env!("CARGO_PKG_VERSION");
        let server = self.session.server();
        print_message(format_args!("thallus {version}, connected to {server}; \\? lists the commands"));
        let typist = Typist::new();
        loop {
            let text = match typist.read()? {
                Typed::Text(text) => text,
                Typed::End => return Ok(code::SUCCESS),
            };
            self.screen_lines = typist.screen_lines();
            match self.run_text(&text) {
                Ok(Next::GoOn) => {}
                Ok(Next::Leave) => return Ok(code::SUCCESS),
                Err(failure) => print_failure(&failure),
            }
        }
    }

    /// Runs the statements of a text that is complete, up to the first failure.
    fn run_text(&mut self, text: &str) -> Result<Next, Failure> {
        if is_command(text) {
            return self.command(text);
        }
        let mut pending = Pending::default();
        pending.push(text);
        pending.push("\n");
        while let Some(statement) = pending.next() {
            self.statement(&statement.sql)?;
        }
        Ok(Next::GoOn)
    }

    /// Runs the statements of a file, up to the first failure, whose exit code it returns.
    fn read(&mut self, mut input: impl BufRead) -> Result<u8, Failure> {
        let mut pending = Pending::default();
        let (mut line, mut number) = (String::new(), 0);
        loop {
            line.clear();
            let what = || "cannot read standard input".to_owned();
            let bytes = input.read_line(&mut line).map_err(|source| Failure::Local { what: what(), source })?;
            number += 1;
            if bytes > 0 && pending.is_blank() && is_command(&line) {
                // A command ends the statements before it, which are blank.
                pending = Pending::after(number);
                match self.command(&line) {
                    Ok(Next::GoOn) => continue,
                    Ok(Next::Leave) => return Ok(code::SUCCESS),
                    Err(failure) => return Ok(stopped(&failure, number)),
                }
            }
            pending.push(&line);
            while let Some(Statement { sql, line }) = next(&mut pending, bytes == 0) {
                if let Err(failure) = self.statement(&sql) {
                    return Ok(stopped(&failure, line));
                }
            }
            if bytes == 0 {
                return Ok(code::SUCCESS);
            }
        }
    }

    /// Runs a statement and shows its result.
    fn statement(&mut self, sql: &str) -> Result<(), Failure> {
        self.revive()?;
        let mut format = FormatOptions::table(self.max_rows);
        format.expanded = self.expanded;
        let started = Instant::now();
        let progress = Progress::new(self.is_typed && io::stderr().is_terminal());
        if self.on_terminal {
            let text = spool()?;
            let copy = text.try_clone().map_err(|source| Failure::Local { what: "cannot show rows".into(), source })?;
            self.session.run(sql, format, Output::spool(copy), progress)?;
            pager::show(text, self.screen_lines)?;
        } else {
            self.session.run(sql, format, Output::stdout()?, progress)?;
        }
        if self.timing {
            print_message(format_args!("time: {}", human_duration(started.elapsed())));
        }
        Ok(())
    }

    /// Makes a new connection if the server was restarted. A file of statements needs one server from begin to end.
    fn revive(&mut self) -> Result<(), Failure> {
        if self.is_typed && self.session.revive()? {
            print_message(format_args!("note: the connection had ended; this is a new one"));
        }
        Ok(())
    }

    fn command(&mut self, line: &str) -> Result<Next, Failure> {
        let switched = |what: &str, on: bool| print_message(format_args!("{what} {}", if on { "on" } else { "off" }));
        let hint = || "\\? lists the commands".to_owned();
        match ShellCommand::parse(line).map_err(|message| Failure::Usage { message, hint: hint() })? {
            ShellCommand::Quit => return Ok(Next::Leave),
            ShellCommand::Help => print_message(format_args!("{}", HELP.trim_end())),
            ShellCommand::Timing => {
                self.timing = !self.timing;
                switched("timing is", self.timing);
            }
            ShellCommand::Expanded => {
                self.expanded = !self.expanded;
                switched("expanded output is", self.expanded);
            }
            ShellCommand::Tables => {
                let objects = self.objects(&ObjectsRequest { depth: Depth::Tables, ..ObjectsRequest::default() })?;
                self.show(&listing::tables(&objects)?)?;
            }
            ShellCommand::Columns(name) => {
                let objects = self.objects(&listing::request_of(&name))?;
                let rows = listing::columns(&objects)?.ok_or_else(|| Failure::Usage {
                    message: format!("there is no table {:?}", name.join(".")),
                    hint: "\\d lists the tables".into(),
                })?;
                self.show(&rows)?;
            }
        }
        Ok(Next::GoOn)
    }

    fn objects(&mut self, request: &ObjectsRequest) -> Result<Vec<CatalogObject>, Failure> {
        self.revive()?;
        self.session.objects(request, LISTING)
    }

    /// Shows rows of this program's own.
    fn show(&self, rows: &RecordBatch) -> Result<(), Failure> {
        let write = |output: Output| {
            let format = FormatOptions::table(usize::MAX);
            let mut writer = format::writer(&format, &rows.schema(), &output)?;
            let written = writer.write(rows).and_then(|()| writer.finish());
            written.map_err(|error| format::failure(format.format, error, &output))
        };
        if !self.on_terminal {
            return write(Output::stdout()?);
        }
        let text = spool()?;
        let copy = text.try_clone().map_err(|source| Failure::Local { what: "cannot show rows".into(), source })?;
        write(Output::spool(copy))?;
        pager::show(text, self.screen_lines)
    }
}

/// The next statement; at the end of the input it may have no `;`.
fn next(pending: &mut Pending, is_end: bool) -> Option<Statement> {
    let complete = pending.next();
    if is_end { complete.or_else(|| pending.rest()) } else { complete }
}

/// Shows the failure that ended a file of statements. Returns its exit code.
fn stopped(failure: &Failure, line: usize) -> u8 {
    print_failure(failure);
    if !matches!(failure, Failure::BrokenPipe) {
        print_message(format_args!("note: that is the statement at line {line}; the following ones were not run"));
    }
    failure.exit_code()
}
