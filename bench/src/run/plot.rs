//! Plots of the figures, as SVG.

use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;

use super::cases::{FIGURES, Figure, Measure, human};
use super::summary::{CaseResult, Summary};
use crate::contender::Contender;

const SIZE: (u32, u32) = (1080, 540);
/// Width of the legend beside the chart.
const LEGEND: u32 = 140;

fn colour(contender: Contender) -> RGBColor {
    match contender {
        Contender::Thallus => RGBColor(0, 90, 181),
        Contender::Lent => RGBColor(77, 157, 224),
        Contender::Mapped => RGBColor(0, 158, 115),
        Contender::Inline => RGBColor(230, 159, 0),
        Contender::FlightRust => RGBColor(213, 94, 0),
        Contender::FlightSqlRust => RGBColor(240, 150, 110),
        Contender::FlightCpp => RGBColor(204, 60, 140),
        Contender::FlightSqlCpp => RGBColor(230, 150, 200),
        Contender::Memcpy => RGBColor(90, 90, 90),
        Contender::UcxGet => RGBColor(160, 160, 160),
    }
}

/// Plots every figure that has measurements. Returns their names.
pub(super) fn plot_all(summary: &Summary, out: &Path) -> Result<Vec<&'static str>, String> {
    let mut plotted = Vec::new();
    for figure in &FIGURES {
        let cases: Vec<&CaseResult> = summary.figure(figure.name).collect();
        if cases.is_empty() {
            continue;
        }
        let path = out.join(format!("{}.svg", figure.name));
        let by_name = figure.axis.is_empty();
        let done = if by_name { bars(figure, &cases, &path) } else { lines(figure, &cases, &path) };
        done.map_err(|e| format!("{}: {e}", path.display()))?;
        plotted.push(figure.name);
    }
    Ok(plotted)
}

type Plotted = Result<(), Box<dyn std::error::Error>>;

fn value(figure: &Figure, case: &CaseResult, who: Contender) -> Option<f64> {
    let result = case.results.get(&who)?;
    Some(match figure.measure {
        Measure::Throughput => result.throughput() / 1e9,
        Measure::Time => result.seconds.median * 1e6,
    })
}

fn unit(figure: &Figure) -> &'static str {
    match figure.measure {
        Measure::Throughput => "GB/s",
        Measure::Time => "microseconds",
    }
}

fn present(cases: &[&CaseResult]) -> Vec<Contender> {
    Contender::ALL.into_iter().filter(|who| cases.iter().any(|case| case.results.contains_key(who))).collect()
}

/// Both axes are logarithmic: sizes and times span several orders of magnitude.
fn lines(figure: &Figure, cases: &[&CaseResult], path: &Path) -> Plotted {
    let who = present(cases);
    let points = |who: Contender| cases.iter().filter_map(move |case| Some((case.x, value(figure, case, who)?)));
    let all: Vec<(f64, f64)> = who.iter().flat_map(|&who| points(who)).collect();
    let (least_x, most_x) = range(all.iter().map(|point| point.0));
    let (least_y, most_y) = range(all.iter().map(|point| point.1));
    let bytes = figure.axis.contains("bytes");
    // Labels fall on powers of the base: for sizes, 1 KiB, 32 KiB, 1 MiB and so on.
    let base = if bytes {
        32.0
    } else if most_x > 1.0 {
        2.0
    } else {
        10.0
    };
    let x_axis = (least_x * 0.8..most_x * 1.25).log_scale().base(base);
    let y_axis = (least_y * 0.8..most_y * 1.25).log_scale();
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (area, legend) = root.split_horizontally(SIZE.0 - LEGEND);
    let mut chart = ChartBuilder::on(&area)
        .caption(figure.title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(x_axis, y_axis)?;
    let label = |x: &f64| if bytes { human(*x as u64) } else { format!("{x}") };
    chart
        .configure_mesh()
        .x_desc(figure.axis)
        .y_desc(unit(figure))
        .x_label_formatter(&label)
        .y_label_formatter(&|y| format!("{}", (y * 1e6).round() / 1e6))
        .light_line_style(RGBColor(235, 235, 235))
        .draw()?;
    for &who in &who {
        let style = colour(who).stroke_width(if who.is_limit() { 1 } else { 2 });
        chart.draw_series(LineSeries::new(points(who), style))?;
        chart.draw_series(points(who).map(|point| Circle::new(point, 3, colour(who).filled())))?;
    }
    name_colours(&legend, &who)?;
    root.present()?;
    Ok(())
}

/// The contenders and their colours, beside the chart, where they cover no curve.
fn name_colours(area: &DrawingArea<SVGBackend<'_>, Shift>, who: &[Contender]) -> Plotted {
    for (y, who) in (50..).step_by(22).zip(who) {
        area.draw(&Rectangle::new([(4, y), (18, y + 10)], colour(*who).filled()))?;
        area.draw(&Text::new(who.name(), (24, y), ("sans-serif", 13)))?;
    }
    Ok(())
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0), |(least, most), value| (least.min(value), most.max(value)))
}

/// Groups of bars, for cases with names instead of numbers.
fn bars(figure: &Figure, cases: &[&CaseResult], path: &Path) -> Plotted {
    let who = present(cases);
    let most = range(cases.iter().flat_map(|case| who.iter().filter_map(|&who| value(figure, case, who)))).1;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (area, legend) = root.split_horizontally(SIZE.0 - LEGEND);
    let mut chart = ChartBuilder::on(&area)
        .caption(figure.title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(
            Groups { labels: cases.iter().map(|case| case.label.clone()).collect() },
            0.0..most * 1.15,
        )?;
    chart.configure_mesh().disable_x_mesh().y_desc(unit(figure)).light_line_style(RGBColor(235, 235, 235)).draw()?;
    let width = 0.8 / who.len() as f64;
    for (number, &who) in who.iter().enumerate() {
        let bar = |(group, case): (usize, &&CaseResult)| {
            let left = group as f64 + 0.1 + number as f64 * width;
            Some(Rectangle::new([(left, 0.0), (left + width * 0.9, value(figure, case, who)?)], colour(who).filled()))
        };
        chart.draw_series(cases.iter().enumerate().filter_map(bar))?;
    }
    name_colours(&legend, &who)?;
    root.present()?;
    Ok(())
}

/// An axis of named groups, each one unit wide, with the name in the middle.
struct Groups {
    labels: Vec<String>,
}

impl Ranged for Groups {
    type FormatOption = plotters::coord::ranged1d::NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = value / self.labels.len() as f64;
        limit.0 + (share * f64::from(limit.1 - limit.0)) as i32
    }

    fn key_points<Hint: plotters::coord::ranged1d::KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..self.labels.len()).map(|group| group as f64 + 0.5).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..self.labels.len() as f64
    }
}

impl ValueFormatter<f64> for Groups {
    fn format_ext(&self, value: &f64) -> String {
        self.labels.get(*value as usize).cloned().unwrap_or_default()
    }
}
