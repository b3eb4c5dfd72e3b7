//! Reads a history for a chart: what the largest names moved in each step of a range of time.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use jiff::tz::TimeZone;
use rusqlite::{Connection, params};
use serde::Serialize;

use super::schema::{in_plain_words, name, open_to_read};
use super::store::Who;
use crate::calendar::Period;

/// The most names that a chart tells apart; the others are one sum.
const MOST_NAMES: usize = 12;
/// The most steps of a chart: a month has 744 hours.
const MOST_STEPS: i64 = 750;

/// The rows that a step is made of, and how many seconds it has, the finest first.
const STEPS: [(Period, i64); 4] =
    [(Period::Minute, 60), (Period::Minute, 300), (Period::Hour, 3600), (Period::Day, 86_400)];

/// What the largest names moved, step by step.
#[derive(Debug, Serialize)]
pub struct Chart {
    /// When the first step begins, in seconds since 1970.
    from: i64,
    /// The seconds of a step. A day on which daylight saving begins or ends counts as one of 24 hours.
    step_seconds: i64,
    /// How many steps there are.
    steps: usize,
    /// The largest first, all others last.
    series: Vec<Series>,
}

#[derive(Debug, Serialize)]
struct Series {
    kind: String,
    name: String,
    user: Option<String>,
    /// The bytes in each step.
    in_bytes: Vec<u64>,
    out_bytes: Vec<u64>,
}

impl Chart {
    /// Reads what moved from `since` on and before `until`, in steps as fine as the history has for all of that. Of a range that is too
    /// long, it has the beginning.
    ///
    /// # Errors
    /// Why that is not possible, with the name of the file.
    pub fn read(path: &Path, since: i64, until: i64, zone: &TimeZone) -> Result<Self> {
        let file = open_to_read(path)?;
        let read = || -> rusqlite::Result<Self> {
            // Both scans see the same rows.
            let file = file.unchecked_transaction()?;
            let (table, step_seconds) = step(&file, since, until)?;
            let from = if table == Period::Minute {
                since.div_euclid(step_seconds) * step_seconds
            } else {
                table.start(since, zone)
            };
            let steps = ((until - from).max(1) + step_seconds - 1) / step_seconds;
            let steps = steps.min(MOST_STEPS);
            let until = until.min(from + steps * step_seconds);
            let steps = usize::try_from(steps).unwrap_or_default();
            let mut chart = Self { from, step_seconds, steps, series: Vec::new() };
            chart.fill(&file, table, until)?;
            Ok(chart)
        };
        read().map_err(in_plain_words).with_context(|| format!("cannot read the history in {}", name(path)))
    }

    fn fill(&mut self, file: &Connection, table: Period, until: i64) -> rusqlite::Result<()> {
        let which = self.largest(file, table, until)?;
        let table = table.name();
        let mut query = file
            .prepare(&format!("SELECT start, who, bytes_in, bytes_out FROM {table} WHERE start >= ? AND start < ?"))?;
        let mut rows = query.query(params![self.from, until])?;
        while let Some(row) = rows.next()? {
            // To the nearest: days may begin an hour early or late.
            let since = row.get::<_, i64>(0)? - self.from + if self.step_seconds == 86_400 { 43_200 } else { 0 };
            let Ok(step) = usize::try_from(since / self.step_seconds) else { continue };
            let others = self.series.len() - 1;
            let at = which.get(&row.get(1)?).copied().unwrap_or(others);
            let Series { in_bytes, out_bytes, .. } = &mut self.series[at];
            for (bytes, column) in [(in_bytes, 2), (out_bytes, 3)] {
                if let Some(bytes) = bytes.get_mut(step) {
                    *bytes = bytes.saturating_add(row.get::<_, i64>(column)?.unsigned_abs());
                }
            }
        }
        let is_silent = |series: &Series| series.in_bytes.iter().chain(&series.out_bytes).all(|&bytes| bytes == 0);
        self.series.retain(|series| !is_silent(series));
        Ok(())
    }

    /// Makes a series for each of the largest names, and one for all others. Returns the series of each number of these names.
    fn largest(&mut self, file: &Connection, table: Period, until: i64) -> rusqlite::Result<HashMap<i64, usize>> {
        let mut query = file.prepare(&format!(
            "SELECT group_concat(id), kind, name, max(user), sum(bytes) AS bytes FROM
                 (SELECT who, sum(bytes_in + bytes_out) AS bytes FROM {} WHERE start >= ? AND start < ? GROUP BY who)
             JOIN who ON id = who WHERE kind <> 'others' GROUP BY kind, name, uid ORDER BY bytes DESC LIMIT ?",
            table.name()
        ))?;
        let mut rows = query.query(params![self.from, until, MOST_NAMES.cast_signed()])?;
        let mut which = HashMap::new();
        while let Some(row) = rows.next()? {
            let numbers: String = row.get(0)?;
            which.extend(
                numbers.split(',').filter_map(|number| number.parse().ok()).map(|number| (number, self.series.len())),
            );
            self.add(row.get(1)?, row.get(2)?, row.get(3)?);
        }
        let Who { kind, name, .. } = Who::others();
        self.add(kind.to_owned(), name, None);
        Ok(which)
    }

    fn add(&mut self, kind: String, name: String, user: Option<String>) {
        let silent = vec![0; self.steps];
        self.series.push(Series { kind, name, user, in_bytes: silent.clone(), out_bytes: silent });
    }
}

/// The finest step that fits: with few enough of them, and rows from the beginning of what there is at all.
fn step(file: &Connection, since: i64, until: i64) -> rusqlite::Result<(Period, i64)> {
    let first = |period: Period, since: i64| -> rusqlite::Result<Option<i64>> {
        file.query_row(&format!("SELECT min(start) FROM {} WHERE start >= ?", period.name()), [since], |row| row.get(0))
    };
    for (period, seconds) in STEPS {
        let (next, next_seconds) = match period {
            Period::Minute => (Period::Hour, 3600),
            Period::Hour => (Period::Day, 86_400),
            _ => break,
        };
        if (until - since) / seconds > MOST_STEPS {
            continue;
        }
        let begins = first(next, since - next_seconds + 1)?.filter(|&begins| begins < until);
        let is_whole = match (first(period, since)?, begins) {
            (_, None) => true,
            (first, Some(begins)) => first.is_some_and(|first| first < begins + next_seconds),
        };
        if is_whole {
            return Ok((period, seconds));
        }
    }
    Ok((Period::Day, 86_400))
}
