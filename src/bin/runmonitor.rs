//! Traffic or bandwidth per process.

use std::process::ExitCode;

use anyhow::{Context, Result};
use bwmon::figures::Figures;
use bwmon::filter::Filter;
use bwmon::ledger::Selection;
use bwmon::monitor::{CountersFrom, Monitor, Settings};
use bwmon::pattern::Pattern;
use bwmon::run::{Signals, run};
use clap::Parser;

/// Shows which process has received and sent how many bytes, once a second.
#[derive(Parser)]
#[command(name = "runmonitor", version, infer_long_args = true, args_override_self = true)]
struct Arguments {
    /// Show bytes per second instead of totals
    #[arg(long)]
    bandwidth: bool,
    /// Do not count what connections carried before the program was started
    #[arg(long)]
    no_lookback: bool,
    /// Do not count connections of this host with itself (127.0.0.*, ::1)
    #[arg(long)]
    ignore_local: bool,
    /// Show only processes whose command line matches; may be given several times
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    include: Vec<std::ffi::OsString>,
    /// Do not show processes whose command line matches; wins over --include
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    exclude: Vec<std::ffi::OsString>,
    /// Where the counters come from: conntrack (all of TCP and UDP), sockets (TCP payload), auto (what there is)
    #[arg(long, value_name = "SOURCE", value_enum, default_value = "auto")]
    source: CountersFrom,
}

fn main() -> ExitCode {
    bwmon::run::exit_code("runmonitor", start(Arguments::parse()))
}

fn start(arguments: Arguments) -> Result<()> {
    let filter = Filter::new(patterns("--include", &arguments.include)?, patterns("--exclude", &arguments.exclude)?);
    let settings = Settings {
        selections: vec![Selection { filter, ignore_local: arguments.ignore_local }],
        // A rate needs only what comes from now on.
        lookback: !arguments.no_lookback && !arguments.bandwidth,
        counters_from: arguments.source,
    };
    let signals = Signals::take()?;
    let monitor = Monitor::of_this_host(settings)?;
    let mut figures = if arguments.bandwidth { Figures::rates(monitor) } else { Figures::totals(monitor) };
    run(&mut figures, signals)
}

fn patterns(option: &str, regexes: &[std::ffi::OsString]) -> Result<Vec<Pattern>> {
    let pattern = |regex: &std::ffi::OsString| {
        Pattern::new(regex.as_encoded_bytes()).with_context(|| format!("{option}={}", regex.display()))
    };
    regexes.iter().map(pattern).collect()
}
