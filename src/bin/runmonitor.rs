//! Traffic or bandwidth per process.

use std::process::ExitCode;

use anyhow::Result;
use bwmon::grouping::{Aggregator, GroupBy, Grouping};
use bwmon::ledger::Selection;
use bwmon::ledger::selection::Filter;
use bwmon::monitor::{CountersFrom, Monitor, MonitorSettings};
use bwmon::output::json::Named;
use bwmon::privileges::{Needs, Opening};
use bwmon::program::history::HistoryArguments;
use bwmon::program::one_source::{OneSource, output};
use bwmon::program::{Signals, cli, run};
use bwmon::python2::pattern::Pattern;
use bwmon::traffic::source::Source;
use bwmon::web::metrics::Label;
use clap::Parser;

/// Shows how many bytes each process has received and sent, once a second.
///
/// Each line has the bytes received, the bytes sent, and the command line of the processes that they belong to. The line with the
/// most bytes comes last. On a terminal, the lines of each second take the place of those before, under a header and above
/// their sum. Root sees all processes, any other user their own.
#[derive(Parser)]
#[command(
    name = "runmonitor",
    version,
    infer_long_args = true,
    args_override_self = true,
    after_long_help = include_str!("help/runmonitor.txt")
)]
struct Arguments {
    /// Show bytes per second instead of totals
    #[arg(long)]
    bandwidth: bool,
    /// Do not count bytes that connections carried before the program started
    #[arg(long)]
    no_lookback: bool,
    /// Do not count connections of this host with itself (loopback, or its own addresses)
    #[arg(long)]
    ignore_local: bool,
    /// Show only processes whose command line matches; may be given several times
    #[arg(long, value_name = "REGEX", value_parser = cli::pattern(), allow_hyphen_values = true)]
    include: Vec<Pattern>,
    /// Do not show processes whose command line matches; wins over --include
    #[arg(long, value_name = "REGEX", value_parser = cli::pattern(), allow_hyphen_values = true)]
    exclude: Vec<Pattern>,
    /// Where the counters come from: packets (all IP traffic of sockets), conntrack (all of TCP and UDP), sockets (TCP
    /// payload) or auto (the first of these that works here)
    #[arg(long, value_name = "SOURCE", value_enum, default_value = "auto", hide_possible_values = true)]
    source: CountersFrom,
    /// Also show the bytes that belong to no process, one line for each reason
    #[arg(long)]
    unowned: bool,
    /// Add processes up that have this in common: command (the command line), program, user, unit or container
    #[arg(long, value_name = "PROPERTY", value_enum, default_value = "command", hide_possible_values = true)]
    group_by: GroupBy,
    /// Show an interactive view, as top does; ? there lists its keys
    #[arg(long, conflicts_with_all = ["json", "wide"])]
    top: bool,
    #[command(flatten)]
    details: cli::Detailing,
    #[command(flatten)]
    history: HistoryArguments,
    #[command(flatten)]
    showing: cli::Showing,
    #[command(flatten)]
    serving: cli::Serving,
    /// Tell applications apart by these, too, in the metrics: unit, container, user, separated by commas
    #[arg(
        long,
        value_name = "LABELS",
        requires = "http",
        value_enum,
        value_delimiter = ',',
        hide_possible_values = true
    )]
    metrics_labels: Vec<Label>,
}

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(arguments) => bwmon::program::exit_code("runmonitor", start(arguments)),
        Err(code) => code,
    }
}

fn start(arguments: Arguments) -> Result<()> {
    let mut signals = Signals::take()?;
    let opening = Opening::begin(Needs::of_monitor(true).to_open(arguments.history.is_kept()))?;
    let named = Named::Group(arguments.group_by.name());
    let Some(recording) = arguments.history.open(arguments.unowned, &mut signals)? else { return Ok(()) };
    let web = arguments.serving.start(named, arguments.metrics_labels, Vec::new(), arguments.history.file())?;
    let is_filtered = !arguments.include.is_empty() || !arguments.exclude.is_empty();
    let filter = Filter::new(arguments.include, arguments.exclude);
    let settings = MonitorSettings {
        selections: vec![Selection { filter, ignore_local: arguments.ignore_local }],
        // Rates need only the bytes from now on.
        lookback: !arguments.no_lookback && !arguments.bandwidth && !arguments.top,
        counters_from: arguments.source,
        keep: arguments.history.keep(arguments.details.keep(arguments.top, web.as_ref())),
    };
    let monitor = Monitor::of_this_host(settings)?;
    let working = opening.end(Needs::of_monitor(monitor.may_open_sources()))?;
    // The interactive view groups them itself.
    let source: Box<dyn Source> = if arguments.top || arguments.group_by == GroupBy::Command {
        Box::new(monitor)
    } else {
        Box::new(Aggregator::new(Grouping { applications: Vec::new(), group_by: arguments.group_by }, vec![monitor]))
    };
    let unowned = arguments.unowned || arguments.top || web.is_some();
    let details = arguments.details.shown(&arguments.showing, arguments.top, arguments.bandwidth, web.as_ref());
    let mut program = OneSource::new(source).with_recording(recording).with_unowned(unowned).with_details(details);
    let output = output(&arguments.showing, arguments.top, arguments.bandwidth, arguments.group_by, is_filtered)?;
    let mut output = arguments.details.served(output, arguments.top, web, arguments.unowned)?;
    run(&mut program, &mut *output, arguments.showing.schedule(), signals, working)
}

#[cfg(test)]
#[path = "../../tests/common/golden.rs"]
mod golden;
#[cfg(test)]
#[path = "../../tests/common/pages.rs"]
mod pages;
#[cfg(test)]
#[path = "../../tests/common/vectors.rs"]
mod vectors;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;
    use serde_json::Value;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    /// The meaning of a command line.
    #[derive(Debug, PartialEq)]
    enum Meaning {
        Run { bandwidth: bool, lookback: bool, ignore_local: bool, include: Vec<Vec<u8>>, exclude: Vec<Vec<u8>> },
        Help,
        Version,
        Error,
    }

    fn parse(arguments: impl IntoIterator<Item = Vec<u8>>) -> Meaning {
        let arguments = arguments.into_iter().map(OsString::from_vec);
        let words = std::iter::once("runmonitor".into()).chain(arguments);
        match Arguments::try_parse_from(cli::expand(words, &mut Arguments::command())) {
            Ok(arguments) => Meaning::Run {
                bandwidth: arguments.bandwidth,
                lookback: !arguments.no_lookback,
                ignore_local: arguments.ignore_local,
                include: arguments.include.iter().map(|pattern| pattern.as_bytes().to_vec()).collect(),
                exclude: arguments.exclude.iter().map(|pattern| pattern.as_bytes().to_vec()).collect(),
            },
            Err(error) if error.kind() == ErrorKind::DisplayHelp => Meaning::Help,
            Err(error) if error.kind() == ErrorKind::DisplayVersion => Meaning::Version,
            Err(error) => {
                assert_eq!(error.exit_code(), 2, "{error}");
                Meaning::Error
            }
        }
    }

    fn parse_words(line: &str) -> Meaning {
        parse(line.split_ascii_whitespace().map(|word| word.as_bytes().to_vec()))
    }

    /// The meaning that a command line had for the original; but words that it ignored are an error now, and the
    /// options that it lacked are none.
    fn recorded(vector: &Value) -> Meaning {
        let options = &vector["options"];
        let positionals = vectors::list(&vector["positionals"]);
        match vector["exit"].as_u64() {
            Some(0) => Meaning::Help,
            Some(_) if ["--version", "-V"].iter().any(|new| vector["argv"][0] == *new) => Meaning::Version,
            Some(_) => Meaning::Error,
            None if !positionals.is_empty() => Meaning::Error,
            None => Meaning::Run {
                bandwidth: options["bandwidth"] == true,
                lookback: options["lookback"] == true,
                ignore_local: options["ignorelocal"] == true,
                include: vectors::list(&options["include_filter"]),
                exclude: vectors::list(&options["exclude_filter"]),
            },
        }
    }

    #[test]
    fn command_lines_mean_the_same_as_to_the_original() {
        let all = vectors::vectors(include_str!("../../tests/vectors/optparse.json"));
        for vector in all.iter().filter(|vector| vector["tool"] == "runmonitor.py") {
            let arguments = vectors::list(&vector["argv"]);
            assert_eq!(parse(arguments), recorded(vector), "{}", vector["argv"]);
        }
    }

    #[test]
    fn exactly_the_unambiguous_abbreviations_are_accepted() {
        const OPTIONS: [&str; 6] =
            ["--bandwidth", "--exclude", "--help", "--ignore-local", "--include", "--no-lookback"];
        for option in OPTIONS {
            for end in 3..=option.len() {
                let short = &option[..end];
                let value = if ["--include", "--exclude"].contains(&option) { "=x" } else { "" };
                let unambiguous = OPTIONS.iter().filter(|option| option.starts_with(short)).count() == 1;
                let expected = if unambiguous { parse_words(&format!("{option}{value}")) } else { Meaning::Error };
                assert_eq!(parse_words(&format!("{short}{value}")), expected, "{short}");
            }
        }
    }

    #[test]
    fn the_word_after_a_pattern_option_is_its_pattern_whatever_it_is() {
        for word in ["-x", "--", "-h", "--help", "--bandwidth", "-"] {
            let include = parse_words(&format!("--include {word}"));
            let exclude = parse_words(&format!("--exclude {word}"));
            let Meaning::Run { include, .. } = include else { panic!("{include:?}") };
            let Meaning::Run { exclude, .. } = exclude else { panic!("{exclude:?}") };
            assert_eq!([include, exclude], [[word.as_bytes()]; 2]);
        }
    }

    #[test]
    fn the_source_of_the_counters_can_be_forced() {
        let source = |words: &[&str]| Arguments::try_parse_from(words).map(|arguments| arguments.source);
        assert_eq!(source(&["runmonitor"]).unwrap(), CountersFrom::Auto);
        assert_eq!(source(&["runmonitor", "--source=auto"]).unwrap(), CountersFrom::Auto);
        assert_eq!(source(&["runmonitor", "--source", "conntrack"]).unwrap(), CountersFrom::Conntrack);
        assert_eq!(source(&["runmonitor", "--source=sockets", "--source=conntrack"]).unwrap(), CountersFrom::Conntrack);
        assert_eq!(source(&["runmonitor", "--source=packets"]).unwrap(), CountersFrom::Packets);
        assert!(source(&["runmonitor", "--source=proc"]).is_err());
    }

    #[test]
    fn the_manual_page_and_the_completions_are_those_of_this_command_line() {
        crate::pages::assert_pages(Arguments::command());
    }
}
