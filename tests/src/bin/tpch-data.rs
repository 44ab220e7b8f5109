//! Generates TPC-H data: `thallus-tpch-data --scale 0.1 --out data/tpch`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use thallus_tests::tpch::{Format, Generated, generate};

/// Generates the eight tables of TPC-H, one file each. Does nothing if they are already there.
#[derive(Parser)]
#[command(name = "thallus-tpch-data", version)]
struct Args {
    /// Scale factor: 1 is about 1 GB as text, 0.3 GB as Parquet.
    #[arg(long, default_value_t = 0.1)]
    scale: f64,

    /// Directory to write to; created if it is missing.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// parquet, arrow or csv.
    #[arg(long, default_value_t)]
    format: Format,
}

fn main() -> ExitCode {
    let Args { scale, out, format } = Args::parse();
    let start = Instant::now();
    match generate(&out, scale, format) {
        Ok(Generated::Rows(rows)) => {
            let seconds = start.elapsed().as_secs_f64();
            println!("wrote {rows} rows of TPC-H, scale {scale}, as {format} to {} in {seconds:.1} s", out.display());
            ExitCode::SUCCESS
        }
        Ok(Generated::AlreadyThere) => {
            println!("{} already holds TPC-H data of scale {scale} as {format}", out.display());
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
