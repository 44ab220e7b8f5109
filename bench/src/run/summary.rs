//! Medians of samples. Ratios are computed within a round, whose contenders are measured one after the other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::measure::Sample;
use crate::contender::Contender;
use crate::wire::Report;

/// A median, with the least and the greatest of the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Spread {
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        Some(Spread { median: quantile(&values, 0.5)?, least: *values.first()?, most: *values.last()? })
    }
}

/// Interpolated quantile of sorted values.
pub(super) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * (sorted.len().checked_sub(1)? as f64);
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * place.fract())
}

/// Measurements of one contender in one case.
#[derive(Clone, Debug)]
pub(super) struct Result {
    pub(super) bytes: u64,
    pub(super) batches: u64,
    /// The median iteration of each round, in seconds.
    pub(super) rounds: Vec<f64>,
    /// Spread of `rounds`.
    pub(super) seconds: Spread,
    /// Quantiles over all iterations of all rounds, in seconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// CPU seconds and page faults of one iteration.
    pub(super) cpu_client: f64,
    pub(super) cpu_server: f64,
    pub(super) faults_client: f64,
    pub(super) faults_server: f64,
    pub(super) peak_client: u64,
    pub(super) peak_server: u64,
    pub(super) report: Option<Report>,
}

impl Result {
    /// Bytes per second, from the median.
    pub(super) fn throughput(&self) -> f64 {
        self.bytes as f64 / self.seconds.median
    }

    fn of(samples: &[&Sample]) -> Option<Self> {
        let first = samples.first()?;
        let mut all: Vec<f64> = samples.iter().flat_map(|sample| sample.seconds.iter().copied()).collect();
        all.sort_by(f64::total_cmp);
        let rounds: Vec<f64> = samples
            .iter()
            .filter_map(|sample| Spread::of(sample.seconds.clone()).map(|spread| spread.median))
            .collect();
        let each = |of: fn(&Sample) -> f64| {
            Spread::of(samples.iter().map(|sample| of(sample) / sample.seconds.len() as f64).collect())
                .map(|spread| spread.median)
        };
        Some(Result {
            bytes: first.bytes,
            batches: first.batches,
            seconds: Spread::of(rounds.clone())?,
            rounds,
            p50: quantile(&all, 0.5)?,
            p99: quantile(&all, 0.99)?,
            cpu_client: each(|sample| sample.cpu_client)?,
            cpu_server: each(|sample| sample.cpu_server)?,
            faults_client: each(|sample| sample.faults_client as f64)?,
            faults_server: each(|sample| sample.faults_server as f64)?,
            peak_client: samples.iter().map(|sample| sample.peak_client).max()?,
            peak_server: samples.iter().map(|sample| sample.peak_server).max()?,
            report: samples.last().and_then(|sample| sample.report),
        })
    }
}

/// A case, with the measurements of every contender.
#[derive(Clone, Debug)]
pub(super) struct CaseResult {
    pub(super) figure: String,
    pub(super) x: f64,
    pub(super) label: String,
    pub(super) query: String,
    pub(super) results: BTreeMap<Contender, Result>,
}

impl CaseResult {
    pub(super) fn bytes(&self) -> u64 {
        self.results.values().next().map_or(0, |result| result.bytes)
    }

    /// Speed of `fast` divided by the speed of `slow`.
    pub(super) fn ratio(&self, fast: Contender, slow: Contender) -> Option<Spread> {
        let (fast, slow) = (self.results.get(&fast)?, self.results.get(&slow)?);
        Spread::of(slow.rounds.iter().zip(&fast.rounds).map(|(slow, fast)| slow / fast).collect())
    }

    /// Speed of `who` divided by the speed of the fastest of `rivals`, in each round.
    pub(super) fn ratio_to_best(&self, who: Contender, rivals: &[Contender]) -> Option<Spread> {
        let who = self.results.get(&who)?;
        let rivals: Vec<_> = rivals.iter().filter_map(|rival| self.results.get(rival)).collect();
        if rivals.is_empty() {
            return None;
        }
        let best =
            |round: usize| rivals.iter().filter_map(|r| r.rounds.get(round)).copied().fold(f64::INFINITY, f64::min);
        Spread::of(who.rounds.iter().enumerate().map(|(round, seconds)| best(round) / seconds).collect())
    }
}

/// All cases, in the order of measurement.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    pub(super) cases: Vec<CaseResult>,
}

impl Summary {
    pub(super) fn of(samples: Vec<Sample>) -> Self {
        let mut order: Vec<(String, String)> = Vec::new();
        let mut groups: BTreeMap<(String, String), Vec<&Sample>> = BTreeMap::new();
        for sample in &samples {
            let key = (sample.figure.clone(), sample.label.clone());
            let group = groups.entry(key.clone()).or_default();
            if group.is_empty() {
                order.push(key);
            }
            group.push(sample);
        }
        let case = |key: (String, String)| {
            let samples = groups.get(&key)?;
            let mut by_contender: BTreeMap<Contender, Vec<&Sample>> = BTreeMap::new();
            for sample in samples {
                by_contender.entry(sample.contender).or_default().push(sample);
            }
            let results =
                by_contender.into_iter().filter_map(|(who, samples)| Some((who, Result::of(&samples)?))).collect();
            let first = samples.first()?;
            Some(CaseResult { figure: key.0, x: first.x, label: key.1, query: first.query.clone(), results })
        };
        Summary { cases: order.into_iter().filter_map(case).collect() }
    }

    pub(super) fn figure<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a CaseResult> {
        self.cases.iter().filter(move |case| case.figure == name)
    }

    /// One line for each case and contender.
    pub(super) fn write_csv(&self, out: &Path) -> std::result::Result<(), String> {
        let path = out.join("summary.csv");
        self.csv(&path).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn csv(&self, path: &Path) -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        writeln!(
            file,
            "figure,case,query,contender,bytes,batches,rounds,seconds_median,seconds_min,seconds_max,p50,p99,\
             bytes_per_second,cpu_client,cpu_server,faults_client,faults_server,peak_client,peak_server,\
             bytes_lent,bytes_inline,copied_client,copied_server,first_answer,wait,read,decode,execute,credit_wait"
        )?;
        for case in &self.cases {
            for (who, r) in &case.results {
                write!(
                    file,
                    "{},{},{},{},{},{},{},{:e},{:e},{:e},{:e},{:e},{:e},{:e},{:e},{},{},{},{}",
                    case.figure,
                    case.label,
                    case.query,
                    who.name(),
                    r.bytes,
                    r.batches,
                    r.rounds.len(),
                    r.seconds.median,
                    r.seconds.least,
                    r.seconds.most,
                    r.p50,
                    r.p99,
                    r.throughput(),
                    r.cpu_client,
                    r.cpu_server,
                    r.faults_client,
                    r.faults_server,
                    r.peak_client,
                    r.peak_server,
                )?;
                match r.report {
                    Some(t) => writeln!(
                        file,
                        ",{},{},{},{},{:e},{:e},{:e},{:e},{:e},{:e}",
                        t.bytes_lent,
                        t.bytes_inline,
                        t.bytes_copied_client,
                        t.bytes_copied_server,
                        t.first_answer,
                        t.wait,
                        t.read,
                        t.decode,
                        t.server_execute,
                        t.server_credit_wait,
                    )?,
                    None => writeln!(file, ",,,,,,,,,,")?,
                }
            }
        }
        file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[1.0, 2.0], 0.5), Some(1.5));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
