//! The arguments of a history, and of the report that reads it.

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result};
use clap::builder::PossibleValue;
use clap::{Parser, ValueEnum, ValueHint};
use jiff::tz::TimeZone;

use super::Signals;
use super::cli::{Showing, number, pattern, usage_error};
use super::recording::Recording;
use crate::calendar::{self, Period};
use crate::history::report::{Query, Report};
use crate::history::{HistorySettings, Kept};
use crate::ledger::Keep;
use crate::ledger::selection::Filter;
use crate::python2::int::int;
use crate::python2::pattern::Pattern;

/// The names of a section of the text, unless `--top=N` says otherwise.
const TOP: usize = 10;

/// What is recorded.
#[derive(Debug, clap::Args)]
pub struct HistoryArguments {
    /// Record what moves in minutes, hours, days and months, in an SQLite file that docs/history.md describes
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, allow_hyphen_values = true)]
    history: Option<OsString>,
    /// Record each remote address by itself
    #[arg(long, requires = "history")]
    history_remotes: bool,
    /// Keep the last M minutes, H hours and D days with traffic, D at least 31; months stay
    #[arg(long, value_name = "M,H,D", requires = "history", value_parser = kept, default_value = "1440,744,731")]
    history_keep: Kept,
    /// Keep less than that in a file of more than this many MiB
    #[arg(long, value_name = "MIB", requires = "history", value_parser = number(16..=1_048_576), default_value = "256")]
    history_size: u32,
    /// Write every so many seconds, 1 to 60
    #[arg(long, value_name = "SECONDS", requires = "history", value_parser = number(1..=60), default_value = "60")]
    history_interval: u32,
}

impl HistoryArguments {
    /// Whether there is a history.
    pub fn is_kept(&self) -> bool {
        self.history.is_some()
    }

    /// The file of the history, if there is one.
    pub fn file(&self) -> Option<PathBuf> {
        self.history.as_ref().map(PathBuf::from)
    }

    /// What monitors have to keep beside `keep`.
    pub fn keep(&self, keep: Keep) -> Keep {
        Keep { remotes: keep.remotes || self.history_remotes, ..keep }
    }

    /// Opens the history, if there is to be one. `unowned`: whether it has the bytes that belong to no process. `None` if a signal
    /// ends the program first.
    ///
    /// # Errors
    /// Why the history cannot be kept.
    pub fn open(&self, unowned: bool, signals: &mut Signals) -> Result<Option<Option<Recording>>> {
        let Some(file) = &self.history else { return Ok(Some(None)) };
        let settings = HistorySettings {
            file: PathBuf::from(file),
            remotes: self.history_remotes,
            zone: TimeZone::system(),
            kept: Kept { most_bytes: u64::from(self.history_size) << 20, ..self.history_keep },
            interval_s: self.history_interval,
        };
        Ok(Recording::open(settings, unowned, signals)?.map(Some))
    }
}

/// What is read from a history.
#[derive(Debug, clap::Args)]
pub struct ReportArguments {
    /// Show who moved how much in each hour, day, week or month of the --history, and exit
    #[arg(
        long,
        value_name = "PERIOD",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "day",
        value_enum,
        hide_possible_values = true,
        requires = "history"
    )]
    report: Option<Period>,
    /// Begin the report then: 2026-11-25, "2026-11-25 14:00", today, yesterday, "3 days" [default: the present period]
    #[arg(long, value_name = "TIME", value_parser = time, requires = "report")]
    since: Option<i64>,
    /// End the report before the period that begins then
    #[arg(long, value_name = "TIME", value_parser = time, requires = "report")]
    until: Option<i64>,
    /// Report only names that match; may be given several times
    #[arg(long, value_name = "REGEX", value_parser = pattern(), allow_hyphen_values = true, requires = "report")]
    include: Vec<Pattern>,
    /// Do not report names that match; wins over --include
    #[arg(long, value_name = "REGEX", value_parser = pattern(), allow_hyphen_values = true, requires = "report")]
    exclude: Vec<Pattern>,
    /// Show an interactive view, as top does; ? there lists its keys. With --report, N is the number of names
    /// [default: 10, and all with --json or --csv]
    #[arg(
        long,
        value_name = "N",
        num_args = 0..=1,
        require_equals = true,
        value_parser = number(1..=1_000_000)
    )]
    top: Option<Option<u32>>,
    /// Report as comma-separated values
    #[arg(long, requires = "report", conflicts_with = "json")]
    csv: bool,
}

impl ReportArguments {
    /// Checks `--top`, which alone is the interactive view and with a number belongs to a report, and the order of the times.
    ///
    /// # Errors
    /// The exit code, after a message on stderr, if `--top` is said in a way that is neither, or the times are the wrong way round.
    pub fn check<Arguments: Parser>(&self, showing: &Showing) -> Result<(), ExitCode> {
        let wrong = match (self.top, self.report.is_some()) {
            (Some(None), true) => "a --report has no interactive view; --top=10 is the number of its names",
            (Some(Some(_)), false) => "--top has a number only with --report; alone it is the interactive view",
            (Some(None), false) if showing.json => "the argument '--top' cannot be used with '--json'",
            (Some(None), false) if showing.wide => "the argument '--top' cannot be used with '--wide'",
            _ if self.since.zip(self.until).is_some_and(|(since, until)| since >= until) => {
                "the report would end before it begins: --until has to be later than --since"
            }
            _ => return Ok(()),
        };
        Err(usage_error::<Arguments>(wrong))
    }

    /// Whether applications are to be shown in the interactive view.
    pub fn is_top(&self) -> bool {
        self.top.is_some()
    }

    /// Prints the report, if one is asked for. Returns whether that was all there is to do.
    ///
    /// # Errors
    /// Why there is no report, or that stdout cannot be written to.
    pub fn print(&self, history: &HistoryArguments, showing: &Showing) -> Result<bool> {
        let (Some(period), Some(file)) = (self.report, &history.history) else { return Ok(false) };
        let (now, zone) = (calendar::seconds(SystemTime::now()), TimeZone::system());
        let (since, until) = (self.since, self.until);
        let top = self.top.flatten().map(|top| top as usize).or((!showing.json && !self.csv).then_some(TOP));
        let query = Query { file: PathBuf::from(file), period, since, until, top, now, zone };
        let filter = Filter::new(self.include.clone(), self.exclude.clone());
        let report = Report::read(&query, &|name| filter.matches(format!("{name} ").as_bytes()))?;
        for message in filter.patterns_over_limit().filter_map(Pattern::limit_message_once) {
            let _ = writeln!(std::io::stderr(), "{message}");
        }
        let text = match (showing.json, self.csv) {
            (true, _) => report.json(),
            (false, true) => report.csv().into_bytes(),
            (false, false) => report.text(showing.wide).into_bytes(),
        };
        match std::io::stdout().write_all(&text) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
            _ => Ok(true),
        }
    }
}

/// The periods of `--report`.
impl ValueEnum for Period {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Hour, Self::Day, Self::Week, Self::Month]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

/// Seconds since 1970.
fn time(text: &str) -> Result<i64, String> {
    calendar::parse(text, calendar::seconds(SystemTime::now()), &TimeZone::system())
}

fn kept(text: &str) -> Result<Kept, String> {
    let wrong = || "not three whole numbers such as 1440,744,731: M and H from 1, D from 31, to 1000000".to_owned();
    let number = |text: &str| int(text).ok().and_then(|number| u32::try_from(number).ok());
    let numbers: Option<Vec<u32>> = text.split(',').map(number).collect();
    match numbers.as_deref() {
        Some(&[minutes @ 1..=1_000_000, hours @ 1..=1_000_000, days @ 31..=1_000_000]) => {
            Ok(Kept { minutes, hours, days, ..Kept::default() })
        }
        _ => Err(wrong()),
    }
}
