//! Recorded loads: CSV with a line for each task, or for several that came together.

use anyhow::{Context, Result, bail, ensure};

use crate::load::Arrival;
use crate::random::{Duration, Random};

/// Reads a trace. Its first line names the columns: `time` (seconds, from any beginning), and optionally `count` (tasks that came at that
/// time, 1 if not given) and `seconds` (what each took; drawn from `service` if not given). Returns the first time and what arrived, counted
/// from then on.
pub(crate) fn parse(csv: &str, service: Duration) -> Result<(f64, Vec<Arrival>)> {
    let mut lines = csv.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, header) = lines.next().context("the trace is empty")?;
    let columns: Vec<&str> = header.split(',').map(str::trim).collect();
    let column = |name: &str| columns.iter().position(|column| *column == name);
    let time = column("time").with_context(|| format!("the trace has no column `time`, only `{header}`"))?;
    let (count, seconds) = (column("count"), column("seconds"));
    let mut services = Random::new(0, "services");
    let mut arrivals = Vec::new();
    for (number, line) in lines {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let number_in = |column: usize| -> Result<f64> {
            let field = fields.get(column).copied().unwrap_or_default();
            let value: f64 = field
                .parse()
                .with_context(|| format!("line {} of the trace: `{field}` is not a number", number + 1))?;
            ensure!(value.is_finite() && value >= 0.0, "line {} of the trace: {value} can't be", number + 1);
            Ok(value)
        };
        let tasks = count.map_or(Ok(1.0), number_in)?;
        ensure!(tasks.fract() == 0.0, "line {} of the trace: {tasks} tasks can't be", number + 1);
        for _ in 0..tasks as u64 {
            let service = seconds.map_or_else(|| Ok(service.draw(&mut services)), number_in)?;
            arrivals.push(Arrival { at: number_in(time)?, service });
        }
    }
    arrivals.sort_by(|a, b| a.at.total_cmp(&b.at));
    let Some(first) = arrivals.first().map(|arrival| arrival.at) else { bail!("the trace has no tasks") };
    for arrival in &mut arrivals {
        arrival.at -= first;
    }
    Ok((first, arrivals))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_counts_and_durations_in_any_order() {
        let (first, arrivals) =
            parse("seconds, time,count\n1.5,1000.5,2\n\n0.25,999.5,1\n", Duration::Constant(9.0)).unwrap();
        assert_eq!(first, 999.5);
        let arrival = |at, service| Arrival { at, service };
        assert_eq!(arrivals, [arrival(0.0, 0.25), arrival(1.0, 1.5), arrival(1.0, 1.5)]);
    }

    #[test]
    fn draws_durations_that_were_not_recorded() {
        let (_, arrivals) = parse("time\n5\n7\n", Duration::Constant(9.0)).unwrap();
        assert_eq!(arrivals.iter().map(|arrival| arrival.service).collect::<Vec<_>>(), [9.0, 9.0]);
    }

    #[test]
    fn says_which_line_it_cannot_read() {
        let error = |csv| format!("{:#}", parse(csv, Duration::Constant(1.0)).unwrap_err());
        assert!(error("time\n1\nsoon\n").starts_with("line 3 of the trace: `soon` is not a number"));
        assert_eq!(error("time\n-1\n"), "line 2 of the trace: -1 can't be");
        assert_eq!(error("time,count\n1,2.5\n"), "line 2 of the trace: 2.5 tasks can't be");
        assert_eq!(error("when\n1\n"), "the trace has no column `time`, only `when`");
        assert_eq!(error(""), "the trace is empty");
        assert_eq!(error("time\n"), "the trace has no tasks");
    }
}
