//! Draws backlog and replicas over time: as a picture for the README, and as a few lines for the terminal.

use std::path::Path;

use anyhow::Result;
use e2e::picture::{self, Line, Panel, TEXT};
use plotters::style::RGBColor;

use crate::series::Series;

/// One curve of a panel: a queue's name and its samples.
pub(crate) struct Curve {
    pub(crate) queue: String,
    pub(crate) samples: Series,
}

/// Writes an SVG with the backlog above and the replicas below, on one time axis in seconds.
pub(crate) fn draw(path: &Path, backlog: &[Curve], replicas: &[Curve]) -> Result<()> {
    // The colours are those of the queues' names in both panels: one legend is enough.
    let upper = panel("Messages waiting and running", backlog, true);
    picture::draw(path, upper, panel("Worker pods", replicas, false))
}

fn panel<'a>(title: &'a str, curves: &'a [Curve], has_legend: bool) -> Panel<'a> {
    let line = |curve: &'a Curve| Line {
        name: &curve.queue,
        color: color(&curve.queue),
        points: steps(&curve.samples),
    };
    let end = curves.iter().flat_map(|c| c.samples.last()).map(|s| s.0).fold(1.0, f64::max);
    Panel { title, time: "seconds", end, lines: curves.iter().map(line).collect(), has_legend }
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
