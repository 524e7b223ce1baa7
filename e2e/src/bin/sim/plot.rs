//! Draws what happened: workers and waits over time, and what a shorter wait costs.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::coord::Shift;
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
const TEXT: RGBColor = RGBColor(70, 70, 80);
const GRID: RGBColor = RGBColor(232, 232, 236);
const SIZE: (u32, u32) = (900, 560);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Workers above, the wait of the oldest message below, from `from` to `to` in seconds.
pub(crate) fn timeline(path: &Path, (from, to): (f64, f64), curves: &[Curve<'_>]) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (upper, lower) = area.split_vertically(SIZE.1 / 2);
    panel(&upper, "Worker pods", (from, to), curves, |sample| f64::from(sample.pods))?;
    panel(&lower, "Wait of the oldest message, seconds", (from, to), curves, |sample| sample.oldest_wait)?;
    area.present().with_context(|| format!("write {}", path.display()))
}

fn panel(
    area: &Area<'_>,
    title: &str,
    (from, to): (f64, f64),
    curves: &[Curve<'_>],
    value: impl Fn(&Sample) -> f64,
) -> Result<()> {
    let points = |curve: &Curve<'_>| {
        let within = curve.samples.iter().filter(|sample| (from..=to).contains(&sample.at));
        within.map(|sample| ((sample.at - from) / 60.0, value(sample))).collect::<Vec<_>>()
    };
    let top = curves.iter().flat_map(&points).map(|(_, value)| value).fold(1.0, f64::max) * 1.08;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18).into_font().color(&TEXT))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..(to - from) / 60.0, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .axis_style(TEXT)
        .x_desc("minutes")
        .x_label_formatter(&|v| format!("{v:.0}"))
        .y_label_formatter(&|v| format!("{v:.0}"))
        .draw()?;
    for curve in curves {
        let color = curve.color;
        chart
            .draw_series(LineSeries::new(corners(&points(curve)), color.stroke_width(2)))?
            .label(curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 14).into_font().color(&TEXT))
        .draw()?;
    Ok(())
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
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 14).into_font().color(&TEXT))
        .draw()?;
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
