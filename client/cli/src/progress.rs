//! The progress bar on stderr.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use thallus_client::TransferReport;
use thallus_fabric::units::{grouped, human_size};

const INTERVAL: Duration = Duration::from_millis(100);

/// Rows, bytes and rate so far, if a terminal shows them.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    drawn: Instant,
}

impl Progress {
    /// A bar, or nothing.
    #[must_use]
    pub fn new(shown: bool) -> Self {
        let bar = shown.then(|| {
            let bar = ProgressBar::new_spinner().with_message("waiting for the server");
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            // A thread of the bar's own turns it while the server plans.
            bar.enable_steady_tick(INTERVAL);
            bar
        });
        Progress { bar, drawn: Instant::now() }
    }

    /// Shows a report. The function runs only when it is time to draw.
    pub fn update(&mut self, report: impl FnOnce() -> TransferReport) {
        let Some(bar) = &self.bar else { return };
        if self.drawn.elapsed() < INTERVAL {
            return;
        }
        self.drawn = Instant::now();
        bar.set_message(message(&report()));
    }

    /// Removes the bar, so that other text can be written.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn message(report: &TransferReport) -> String {
    let rate = human_size(report.throughput() as u64);
    format!("{} rows, {}, {rate}/s", grouped(report.rows), human_size(report.bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_bytes_and_rate() {
        let total = Duration::from_secs(2);
        let report = TransferReport { rows: 1234, bytes_lent: 2048, bytes_inline: 2048, total, ..Default::default() };
        assert_eq!(message(&report), "1,234 rows, 4.00 KiB, 2.00 KiB/s");
    }

    #[test]
    fn a_hidden_bar_requests_no_report() {
        let mut progress = Progress::new(false);
        progress.drawn -= INTERVAL;
        progress.update(|| panic!("a hidden bar requested a report"));
        progress.clear();
    }
}
