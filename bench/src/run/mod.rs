//! The harness: runs every case with every contender in turn, and records each measurement.

mod cases;
mod machine;
mod measure;
mod model;
mod page;
mod plot;
mod process;
mod summary;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::contender::Contender;
use crate::tables::{NAMES, Tables};

/// Options of a run.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Fewer cases and rounds: a few minutes.
    #[arg(long)]
    quick: bool,
    /// Directory for measurements, plots and the page.
    #[arg(long, default_value = "results")]
    out: PathBuf,
    /// Python interpreter with pyarrow and numpy, for Flight in C++.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Directory of the Python contender.
    #[arg(long, default_value = "python")]
    scripts: PathBuf,
    /// Run only these figures.
    #[arg(long, value_delimiter = ',')]
    figures: Vec<String>,
    /// Run only these contenders.
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// Number of rounds of every case, instead of the default.
    #[arg(long)]
    rounds: Option<usize>,
}

/// Options of a report.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Directory of the measurements.
    #[arg(long, default_value = "results")]
    out: PathBuf,
}

/// Runs the comparison and writes its report.
pub fn run(args: &RunArgs) -> Result<(), String> {
    fs::create_dir_all(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    let known = cases::FIGURES.map(|figure| figure.name);
    if let Some(name) = args.figures.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("there is no figure {name:?} (known: {})", known.join(", ")));
    }
    let tables = Tables::default();
    let files = tempfile::tempdir().map_err(|e| e.to_string())?;
    if args.python.is_some() {
        for name in NAMES {
            let table = tables.get(name)?;
            table.write(&files.path().join(format!("{name}.arrow"))).map_err(|e| e.to_string())?;
        }
    }
    let machine = machine::Machine::of(args.python.as_deref(), args.quick);
    machine.write(&args.out)?;
    let mut contest = measure::Contest::new(measure::Setup {
        python: args.python.clone(),
        scripts: args.scripts.clone(),
        files: files.path().to_owned(),
        only: args.contenders.clone(),
        quick: args.quick,
        rounds: args.rounds,
    });
    let mut log = measure::Log::create(&args.out)?;
    for case in cases::cases(args.quick, &tables)? {
        if args.figures.is_empty() || args.figures.iter().any(|name| name == case.figure) {
            contest.run(&case, &mut log)?;
        }
    }
    drop(contest);
    report_on(&args.out)
}

/// Writes figures and page from existing measurements.
pub fn report(args: &ReportArgs) -> Result<(), String> {
    report_on(&args.out)
}

fn report_on(out: &Path) -> Result<(), String> {
    let machine = machine::Machine::read(out)?;
    let summary = summary::Summary::of(measure::read(out)?);
    summary.write_csv(out)?;
    let plots = plot::plot_all(&summary, out)?;
    page::write(&machine, &summary, &plots, out)?;
    eprintln!("written: {}", out.join("README.md").display());
    Ok(())
}
