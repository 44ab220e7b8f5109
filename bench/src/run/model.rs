//! A model that predicts throughput on other links and hosts from the measured costs per batch and per byte.
//!
//! The costs of a contender are a linear fit to the figure `batches`, in which the same bytes come in batches of
//! different sizes. The slope is the cost of a batch; the rest, divided by the bytes, is the cost of a byte.

use super::summary::{Result, Summary};
use crate::contender::Contender;

/// Costs of a batch and of a byte, in CPU seconds, at either end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Costs {
    pub(super) client: Line,
    pub(super) server: Line,
}

/// `batch * batches + byte * bytes`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) batch: f64,
    pub(super) byte: f64,
}

impl Line {
    fn fit(points: &[(f64, f64)], bytes: f64) -> Option<Line> {
        let count = points.len() as f64;
        if points.len() < 2 {
            return None;
        }
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|p| p.0), mean(|p| p.1));
        let covariance: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
        let variance: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
        // Noise can make a cost negative that is close to zero.
        let batch = (covariance / variance).max(0.0);
        Some(Line { batch, byte: ((y - batch * x) / bytes).max(0.0) })
    }

    pub(super) fn of(self, batch_bytes: f64, bytes: f64) -> f64 {
        self.batch * bytes / batch_bytes + self.byte * bytes
    }
}

pub(super) fn costs(summary: &Summary, who: Contender) -> Option<Costs> {
    let results: Vec<&Result> = summary.figure("batches").filter_map(|case| case.results.get(&who)).collect();
    let bytes = results.first()?.bytes as f64;
    let line = |cpu: fn(&Result) -> f64| {
        let points: Vec<_> = results.iter().map(|result| (result.batches as f64, cpu(result))).collect();
        Line::fit(&points, bytes)
    };
    Some(Costs { client: line(|r| r.cpu_client)?, server: line(|r| r.cpu_server)? })
}

/// The upper bound of the throughput in bytes per second, and its cause: the link, or the cores of the server or
/// clients.
pub(super) fn bound(costs: Costs, link: f64, cores: f64, clients: f64, batch: f64) -> (f64, &'static str) {
    let rate = |line: Line, cores: f64| cores / line.of(batch, 1.0).max(f64::MIN_POSITIVE);
    let bounds = [
        (link, "link"),
        (rate(costs.server, cores), "server's CPU"),
        // A client takes its stream on one core.
        (rate(costs.client, clients), "clients' CPU"),
    ];
    bounds.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((link, "link"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_through_exact_points_is_found() {
        let line = Line::fit(&[(64.0, 64.0 * 2.0 + 100.0), (1024.0, 1024.0 * 2.0 + 100.0)], 50.0).unwrap();
        assert!((line.batch - 2.0).abs() < 1e-9 && (line.byte - 2.0).abs() < 1e-9, "{line:?}");
    }

    #[test]
    fn the_tightest_bound_counts() {
        let costs = Costs { client: Line { batch: 0.0, byte: 1e-9 }, server: Line { batch: 0.0, byte: 1e-10 } };
        assert_eq!(bound(costs, 12.5e9, 1.0, 1.0, 1e6).1, "clients' CPU");
        assert_eq!(bound(costs, 12.5e9, 1.0, 100.0, 1e6).1, "server's CPU");
        assert_eq!(bound(costs, 1e9, 1.0, 100.0, 1e6).1, "link");
    }
}
