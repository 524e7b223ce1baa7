//! The outcome of a benchmark as a line of JSON.

use anyhow::{Result, ensure};
use serde::Serialize;

/// One line. The fields and their order are what whoever reads the lines relies on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) bench: &'static str,
    pub(crate) worker: &'static str,
    pub(crate) queue: &'static str,
    pub(crate) results: &'static str,
    pub(crate) in_hand: u16,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) unit: String,
    pub(crate) runs: usize,
}

/// What was measured, but for the figures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) bench: &'static str,
    pub(crate) worker: &'static str,
    pub(crate) queue: &'static str,
    pub(crate) results: &'static str,
    pub(crate) in_hand: u16,
}

impl Subject {
    /// Prints the line of these figures, one for each run, and gives back their median.
    pub(crate) fn print(self, unit: impl Into<String>, figures: &[f64]) -> Result<f64> {
        let line = self.line(unit.into(), figures)?;
        println!("{}", serde_json::to_string(&line)?);
        Ok(line.median)
    }

    fn line(self, unit: String, figures: &[f64]) -> Result<Line> {
        ensure!(!figures.is_empty(), "nothing was measured");
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let Self { bench, worker, queue, results, in_hand } = self;
        Ok(Line {
            bench,
            worker,
            queue,
            results,
            in_hand,
            median: rounded(sorted[sorted.len() / 2]),
            min: rounded(sorted[0]),
            max: rounded(sorted[sorted.len() - 1]),
            unit,
            runs: sorted.len(),
        })
    }
}

/// To four digits that mean something.
fn rounded(figure: f64) -> f64 {
    if figure == 0.0 {
        return 0.0;
    }
    let scale = 10_f64.powf(3.0 - figure.abs().log10().floor());
    (figure * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_median_and_the_extremes() {
        let subject =
            Subject { bench: "drain", worker: "soloist", queue: "classic", results: "none", in_hand: 1 };
        let line = subject.line("tasks/s".to_owned(), &[3.0, 12_345.678, 0.012_345_6]).unwrap();
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            "{\"bench\":\"drain\",\"worker\":\"soloist\",\"queue\":\"classic\",\"results\":\"none\",\"in_hand\":1,\
             \"median\":3.0,\"min\":0.01235,\"max\":12350.0,\"unit\":\"tasks/s\",\"runs\":3}"
        );
        assert!(subject.line(String::new(), &[]).is_err());
    }
}
