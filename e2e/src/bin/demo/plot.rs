//! Draws backlog and replicas over time: as a picture for the README, and as a few lines for the terminal.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;

use crate::series::Series;

/// One curve of a panel: a queue's name and its samples.
pub(crate) struct Curve {
    pub(crate) queue: String,
    pub(crate) samples: Series,
}

const SIZE: (u32, u32) = (900, 560);
const TEXT: RGBColor = RGBColor(70, 70, 80);

/// Writes an SVG with the backlog above and the replicas below, on one time axis in seconds.
pub(crate) fn draw(path: &Path, backlog: &[Curve], replicas: &[Curve]) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (upper, lower) = area.split_vertically(SIZE.1 / 2);
    // The colours are those of the queues' names in both panels: one legend is enough.
    panel(&upper, "Messages waiting and running", backlog, true).context("draw the backlog")?;
    panel(&lower, "Worker pods", replicas, false).context("draw the replicas")?;
    area.present().with_context(|| format!("write {}", path.display()))
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    curves: &[Curve],
    with_legend: bool,
) -> Result<()> {
    let seconds = curves.iter().flat_map(|c| c.samples.last()).map(|s| s.0).fold(1.0, f64::max);
    let top = curves.iter().flat_map(|c| &c.samples).map(|s| s.1).fold(1.0, f64::max) * 1.08;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18).into_font().color(&TEXT))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..seconds, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(232, 232, 236))
        .axis_style(TEXT)
        .x_desc("seconds")
        .x_label_formatter(&|v| format!("{v:.0}"))
        .y_label_formatter(&|v| format!("{v:.0}"))
        .draw()?;
    for curve in curves {
        let color = color(&curve.queue);
        chart
            .draw_series(LineSeries::new(steps(&curve.samples), color.stroke_width(2)))?
            .label(&curve.queue)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(3)));
    }
    if with_legend {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .label_font(("sans-serif", 14).into_font().color(&TEXT))
            .draw()?;
    }
    Ok(())
}

/// A sample holds until the next one: counts jump, they do not slide.
fn steps(samples: &Series) -> Vec<(f64, f64)> {
    let mut points = Vec::with_capacity(samples.len() * 2);
    for (i, &(at, value)) in samples.iter().enumerate() {
        if i > 0 {
            points.push((at, samples[i - 1].1));
        }
        points.push((at, value));
    }
    points
}

fn color(queue: &str) -> RGBColor {
    match queue {
        "red" => RGBColor(204, 61, 61),
        "green" => RGBColor(46, 139, 87),
        "blue" => RGBColor(52, 101, 196),
        _ => TEXT,
    }
}

/// The curve in one line of block characters, `width` wide, scaled to its own maximum.
pub(crate) fn sparkline(samples: &Series, width: usize) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let end = samples.last().map_or(1.0, |s| s.0).max(1.0);
    let mut columns = vec![0.0_f64; width];
    for &(at, value) in samples {
        let column = ((at / end) * (width - 1) as f64).round() as usize;
        columns[column] = columns[column].max(value);
    }
    let top = columns.iter().copied().fold(0.0, f64::max).max(1.0);
    columns.iter().map(|v| BLOCKS[(v / top * 8.0).ceil() as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_shows_rise_and_fall() {
        let samples = vec![(0.0, 0.0), (1.0, 4.0), (2.0, 8.0), (3.0, 0.0)];
        assert_eq!(sparkline(&samples, 4), " ▄█ ");
    }

    #[test]
    fn a_value_holds_until_the_next_sample() {
        assert_eq!(steps(&vec![(0.0, 1.0), (5.0, 3.0)]), [(0.0, 1.0), (5.0, 1.0), (5.0, 3.0)]);
    }
}
