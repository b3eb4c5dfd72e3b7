//! Reads a history: who moved how much in each hour, day, week or month, as text, JSON lines or CSV.
//!
//! It reads while another program writes, and needs no right but to read the file.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use jiff::tz::TimeZone;
use rusqlite::params;
use serde::Serialize;
use unicode_width::UnicodeWidthChar;

use super::schema::{in_plain_words, name, open_to_read};
use super::store::Who;
use crate::calendar::{Period, local};
use crate::output::json;
use crate::printable::{human, is_unsafe_to_print, printable};

/// The columns of a bar that stands for all bytes of a period.
const BAR_WIDTH: usize = 20;
/// The columns of a name in the text.
const NAME_WIDTH: usize = 60;

/// What to read.
#[derive(Debug)]
pub struct Query {
    /// The history.
    pub file: PathBuf,
    /// What the report has a section for.
    pub period: Period,
    /// A time in the first period; `None` for the period of `now`.
    pub since: Option<i64>,
    /// The time before which the last period begins; `None` for the end of the period of `now`.
    pub until: Option<i64>,
    /// The number of names in a section; the smallest ones are added up. `None` for all.
    pub top: Option<usize>,
    /// The present, in seconds since 1970.
    pub now: i64,
    /// Where it is this late.
    pub zone: TimeZone,
}

/// What a history says.
#[derive(Debug)]
pub struct Report {
    period: Period,
    zone: TimeZone,
    /// The first and the last moment.
    range: (i64, i64),
    sections: Vec<Section>,
}

/// One period.
#[derive(Debug)]
struct Section {
    start: i64,
    /// The largest first, others last.
    rows: Vec<Usage>,
}

/// What one application or command line of a user moved.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Usage {
    kind: String,
    name: String,
    uid: Option<u32>,
    user: Option<String>,
    bytes_in: u64,
    bytes_out: u64,
}

impl Usage {
    fn others() -> Self {
        let Who { kind, name, .. } = Who::others();
        Self { kind: kind.to_owned(), name, uid: None, user: None, bytes_in: 0, bytes_out: 0 }
    }

    fn total(&self) -> u64 {
        self.bytes_in.saturating_add(self.bytes_out)
    }

    fn add(&mut self, other: &Self) {
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
    }

    fn is_same(&self, other: &Self) -> bool {
        (&self.kind, &self.name, self.uid) == (&other.kind, &other.name, other.uid)
    }
}

impl Report {
    /// Reads what the history has of the names that `selects` selects.
    ///
    /// # Errors
    /// Why that is not possible, with the name of the file; or that the range is none.
    pub fn read(query: &Query, selects: &dyn Fn(&str) -> bool) -> Result<Self> {
        let Query { period, zone, now, .. } = query;
        let since = period.start(query.since.unwrap_or(*now), zone);
        let until = query.until.unwrap_or_else(|| period.end(period.start(*now, zone), zone));
        ensure!(since < until, "the report would end before it begins: --until has to be later than --since");
        let table = match period {
            Period::Week => Period::Day,
            period => *period,
        };
        let file = open_to_read(&query.file)?;
        let read = || -> rusqlite::Result<Vec<Section>> {
            let mut rows = file.prepare(&format!(
                "SELECT start, kind, name, uid, max(user), sum(bytes_in), sum(bytes_out) FROM {} JOIN who ON id = who
                 WHERE start >= ? AND start < ? GROUP BY start, kind, name, uid ORDER BY start",
                table.name()
            ))?;
            let mut rows = rows.query(params![since, until])?;
            let mut sections: Vec<Section> = Vec::new();
            while let Some(row) = rows.next()? {
                let start = period.start(row.get(0)?, zone);
                let name: String = row.get(2)?;
                if !selects(&name) {
                    continue;
                }
                let usage = Usage {
                    kind: row.get(1)?,
                    name,
                    uid: row.get(3)?,
                    user: row.get(4)?,
                    bytes_in: row.get::<_, i64>(5)?.unsigned_abs(),
                    bytes_out: row.get::<_, i64>(6)?.unsigned_abs(),
                };
                match sections.last_mut() {
                    Some(last) if last.start == start => last.rows.push(usage),
                    last => {
                        last.into_iter().for_each(|last| last.close(query.top));
                        sections.push(Section { start, rows: vec![usage] });
                    }
                }
            }
            sections.last_mut().into_iter().for_each(|last| last.close(query.top));
            Ok(sections)
        };
        let sections = read().map_err(|error| {
            in_plain_words(error).context(format!("cannot read the history in {}", name(&query.file)))
        })?;
        Ok(Self { period: *period, zone: zone.clone(), range: (since, until), sections })
    }

    /// For a person: a section for each period, with a line for each name. Long names are cut, unless `wide`.
    pub fn text(&self, wide: bool) -> String {
        let time = |at, format| local(at, &self.zone).strftime(format).to_string();
        if self.sections.is_empty() {
            let [since, until] = [self.range.0, self.range.1].map(|at| time(at, "%F %H:%M"));
            return format!("nothing was recorded from {since} to {until}\n");
        }
        let mut text = String::new();
        for Section { start, rows } in &self.sections {
            let title = match self.period {
                Period::Minute | Period::Hour => time(*start, "%F %H:%M %Z"),
                Period::Day => time(*start, "%A %F"),
                Period::Week => {
                    let last = Period::Week.end(*start, &self.zone) - 1;
                    format!("{} to {}", time(*start, "%F"), time(last, "%F"))
                }
                Period::Month => time(*start, "%B %Y"),
            };
            let mut total = Usage::others();
            rows.iter().for_each(|row| total.add(row));
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&format!("{title}\n{:>10}  {:>10}  {:>10}\n", "in", "out", "total"));
            for row in rows {
                let share = row.total() as f64 / (total.total().max(1)) as f64;
                let bar = "#".repeat((share * BAR_WIDTH as f64).round() as usize);
                let user = row.user.as_ref().map(|user| format!(" ({})", shown(user, 32))).unwrap_or_default();
                let name = shown(&row.name, if wide { usize::MAX } else { NAME_WIDTH });
                text.push_str(&format!(
                    "{}  {:>5.1} %  {bar:<BAR_WIDTH$}  {name}{user}\n",
                    figures(row),
                    share * 100.0
                ));
            }
            text.push_str(&format!("{}  100.0 %  {:<BAR_WIDTH$}  (total)\n", figures(&total), ""));
        }
        text
    }

    /// For programs: one JSON object per line.
    pub fn json(&self) -> Vec<u8> {
        let mut text = Vec::new();
        self.records().for_each(|record| json::write(&mut text, &record));
        text
    }

    /// For spreadsheets: comma-separated values (RFC 4180) with a header, but lines that end as Unix has it.
    pub fn csv(&self) -> String {
        let mut text = "period,start,end,kind,name,uid,user,in_bytes,out_bytes\n".to_owned();
        for Record { period, start, end, kind, name, uid, user, in_bytes, out_bytes } in self.records() {
            let uid = uid.map(|uid| uid.to_string()).unwrap_or_default();
            let [kind, name, user] = [kind, name, user.unwrap_or_default()].map(quoted);
            text.push_str(&format!("{period},{start},{end},{kind},{name},{uid},{user},{in_bytes},{out_bytes}\n"));
        }
        text
    }

    fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let time = |at| local(at, &self.zone).strftime("%FT%T%:z").to_string();
        self.sections.iter().flat_map(move |Section { start, rows }| {
            let (from, to) = (time(*start), time(self.period.end(*start, &self.zone)));
            rows.iter().map(move |row| Record {
                period: self.period.name(),
                start: from.clone(),
                end: to.clone(),
                kind: &row.kind,
                name: &row.name,
                uid: row.uid,
                user: row.user.as_deref(),
                in_bytes: row.bytes_in,
                out_bytes: row.bytes_out,
            })
        })
    }
}

impl Section {
    /// Adds up the rows of one name, and those beyond the `top` largest.
    fn close(&mut self, top: Option<usize>) {
        self.rows.sort_by(|a, b| (&a.kind, &a.name, a.uid).cmp(&(&b.kind, &b.name, b.uid)));
        self.rows.dedup_by(|next, sum| {
            let is_same = next.is_same(sum);
            if is_same {
                sum.add(next);
            }
            is_same
        });
        self.rows.sort_by(|a, b| b.total().cmp(&a.total()).then_with(|| a.name.cmp(&b.name)));
        let mut others = Usage::others();
        self.rows.retain(|row| {
            let is_others = row.is_same(&others);
            if is_others {
                others.add(row);
            }
            !is_others
        });
        let top = top.unwrap_or(usize::MAX).min(self.rows.len());
        self.rows.drain(top..).for_each(|row| others.add(&row));
        if others.total() > 0 {
            self.rows.push(others);
        }
    }
}

/// A line for programs.
#[derive(Serialize)]
struct Record<'a> {
    period: &'static str,
    /// RFC 3339, in local time.
    start: String,
    end: String,
    kind: &'a str,
    name: &'a str,
    uid: Option<u32>,
    user: Option<&'a str>,
    in_bytes: u64,
    out_bytes: u64,
}

fn figures(usage: &Usage) -> String {
    format!("{:>10}  {:>10}  {:>10}", human(usage.bytes_in), human(usage.bytes_out), human(usage.total()))
}

/// A name of the file in at most `width` columns. bwmon writes only what is safe to print, but the file may be anybody's.
fn shown(name: &str, width: usize) -> String {
    if name.chars().any(is_unsafe_to_print) {
        return printable(name.as_bytes(), width);
    }
    let mut columns = 0;
    let mut cut = 0;
    for (at, c) in name.char_indices() {
        columns += c.width().unwrap_or_default().max(1);
        if columns <= width - 3 {
            cut = at + c.len_utf8();
        }
        if columns > width {
            return format!("{}...", &name[..cut]);
        }
    }
    name.to_owned()
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_cut_and_never_dangerous() {
        assert_eq!(shown("curl \\x1b", 20), "curl \\x1b");
        assert_eq!(shown("a\u{1b}[2J", 20), "a\\u{1b}[2J");
        assert_eq!(shown(&"x".repeat(61), 60), "x".repeat(57) + "...");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
