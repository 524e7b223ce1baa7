//! Draws what happened: workers and waits over time, and what a shorter wait costs.

use std::path::Path;

use anyhow::{Context, Result};
use e2e::picture::{self, GRID, Line, Panel, SIZE, TEXT, legend};
use plotters::prelude::*;

use crate::engine::Sample;

/// A line of a picture.
pub(crate) struct Curve<'a> {
    pub(crate) name: &'a str,
    pub(crate) color: RGBColor,
    pub(crate) samples: &'a [Sample],
}

/// A point of the picture of costs: workers on average, and the 95th percentile of the waits.
pub(crate) struct Price {
    pub(crate) setting: f64,
    pub(crate) workers: f64,
    pub(crate) p95_wait: f64,
}

pub(crate) const SOLOIST: RGBColor = RGBColor(52, 101, 196);
pub(crate) const KEDA: RGBColor = RGBColor(204, 61, 61);
pub(crate) const TUNED: RGBColor = RGBColor(222, 140, 40);

/// Workers above, the wait of the oldest message below, from `from` to `to` in seconds.
pub(crate) fn timeline<'a>(path: &Path, (from, to): (f64, f64), curves: &[Curve<'a>]) -> Result<()> {
    let panel = |title, value: fn(&Sample) -> f64| {
        let line = |curve: &Curve<'a>| -> Line<'a> {
            let within = curve.samples.iter().filter(|sample| (from..=to).contains(&sample.at));
            let points: Vec<_> = within.map(|sample| ((sample.at - from) / 60.0, value(sample))).collect();
            Line { name: curve.name, color: curve.color, points: corners(&points) }
        };
        let lines = curves.iter().map(line).collect();
        Panel { title, time: "minutes", end: (to - from) / 60.0, lines, has_legend: true }
    };
    picture::draw(
        path,
        panel("Worker pods", |sample| f64::from(sample.pods)),
        panel("Wait of the oldest message, seconds", |sample| sample.oldest_wait),
    )
}

/// Leaves out the points of a curve that lie on the line between their neighbours.
fn corners(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut kept: Vec<(f64, f64)> = Vec::new();
    for (i, &(x, y)) in points.iter().enumerate() {
        let flat = i > 0 && points[i - 1].1 == y && points.get(i + 1).is_some_and(|next| next.1 == y);
        if !flat {
            kept.push((x, y));
        }
    }
    kept
}

/// Workers on average to the right, waits upward (both logarithmic): what each setting costs and gives.
pub(crate) fn prices(path: &Path, sets: &[(&str, RGBColor, Vec<Price>)]) -> Result<()> {
    let area = SVGBackend::new(path, (SIZE.0, 460)).into_drawing_area();
    area.fill(&WHITE)?;
    let all = || sets.iter().flat_map(|(_, _, prices)| prices);
    let least = all().map(|price| price.workers).fold(f64::INFINITY, f64::min) * 0.96;
    let most = all().map(|price| price.workers).fold(0.0, f64::max) * 1.12;
    let top = all().map(|price| price.p95_wait).fold(1.0, f64::max) * 1.6;
    // A wait of zero is drawn at a tenth of a second.
    let shown = |price: &Price| (price.workers, price.p95_wait.max(0.1));
    let mut chart = ChartBuilder::on(&area)
        .caption("What a shorter wait costs", ("sans-serif", 18).into_font().color(&TEXT))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(60)
        .build_cartesian_2d(least..most, (0.08..top).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .axis_style(TEXT)
        .x_desc("worker pods, on average")
        .y_desc("95th percentile of the waits, seconds")
        .x_label_formatter(&|v| format!("{v:.0}"))
        .y_label_formatter(&|v| if *v < 1.0 { format!("{v:.1}") } else { format!("{v:.0}") })
        .draw()?;
    for (name, color, prices) in sets {
        let color = *color;
        chart
            .draw_series(prices.iter().map(|price| Circle::new(shown(price), 5, color.filled())))?
            .label(*name)
            .legend(move |(x, y)| Circle::new((x + 8, y), 5, color.filled()));
        let label = ("sans-serif", 13).into_font().color(&color);
        chart.draw_series(prices.iter().map(|price| {
            EmptyElement::at(shown(price)) + Text::new(price.setting.to_string(), (7, -15), label.clone())
        }))?;
    }
    legend(&mut chart)?;
    area.present().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_stretch_is_two_points() {
        let points = [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 4.0), (4.0, 4.0)];
        assert_eq!(corners(&points), [(0.0, 1.0), (2.0, 1.0), (3.0, 4.0), (4.0, 4.0)]);
    }
}
