//! How our pictures look: panels one above the other, lines over time, a legend.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::coord::{CoordTranslate, Shift};
use plotters::prelude::*;

/// Width and height of a picture, in pixels.
pub const SIZE: (u32, u32) = (900, 560);
/// Colour of what is written, and of the axes.
pub const TEXT: RGBColor = RGBColor(70, 70, 80);
/// Colour of the lines behind the curves.
pub const GRID: RGBColor = RGBColor(232, 232, 236);

/// Values over time.
pub struct Panel<'a> {
    /// What the values are.
    pub title: &'a str,
    /// The unit of time.
    pub time: &'a str,
    /// Where the axis of time ends; it begins at 0.
    pub end: f64,
    /// The curves.
    pub lines: Vec<Line<'a>>,
    /// Whether to say which curve is which.
    pub has_legend: bool,
}

/// A curve.
pub struct Line<'a> {
    /// What it shows.
    pub name: &'a str,
    /// Its colour.
    pub color: RGBColor,
    /// Times and values.
    pub points: Vec<(f64, f64)>,
}

/// Writes an SVG with one panel above another.
///
/// # Errors
/// If the file can't be written.
pub fn draw(path: &Path, upper: Panel<'_>, lower: Panel<'_>) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (above, below) = area.split_vertically(SIZE.1 / 2);
    for (area, panel) in [(above, upper), (below, lower)] {
        let title = panel.title;
        panel.draw(&area).with_context(|| format!("draw the panel `{title}`"))?;
    }
    area.present().with_context(|| format!("write {}", path.display()))
}

impl Panel<'_> {
    fn draw(self, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<()> {
        let values = self.lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value);
        let top = values.fold(1.0, f64::max) * 1.08;
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, ("sans-serif", 18).into_font().color(&TEXT))
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..self.end, 0.0..top)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(GRID)
            .axis_style(TEXT)
            .x_desc(self.time)
            .x_label_formatter(&|v| format!("{v:.0}"))
            .y_label_formatter(&|v| format!("{v:.0}"))
            .draw()?;
        for Line { name, color, points } in self.lines {
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(3)));
        }
        if self.has_legend { legend(&mut chart) } else { Ok(()) }
    }
}

/// Says which curve is which.
///
/// # Errors
/// If it can't be drawn.
pub fn legend<'a, 'b: 'a, C: CoordTranslate>(chart: &mut ChartContext<'a, SVGBackend<'b>, C>) -> Result<()> {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 14).into_font().color(&TEXT))
        .draw()?;
    Ok(())
}
