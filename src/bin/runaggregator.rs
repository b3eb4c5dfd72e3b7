//! Bandwidth per application, over several monitors and pipes, with notifications.

use std::process::ExitCode;

use anyhow::Result;
use bwmon::grouping::GroupBy;
use bwmon::monitor::CountersFrom;
use bwmon::output::json::Named;
use bwmon::program::aggregate::{AggregatorProgram, AggregatorSettings, begin, check_files, output};
use bwmon::program::history::{HistoryArguments, ReportArguments};
use bwmon::program::{Signals, cli, run};
use clap::Parser;

/// Shows how much bandwidth each application uses, once a second.
///
/// Each line has the KiB per second that an application has received and sent, and its name. An application that moves no more than
/// 1 KiB per second in either direction has no line.
///
/// Three files say what to monitor, how to group it and when to notify; monitors.sample.cfg, group.sample.cfg and
/// notifications.sample.cfg explain all their keys. On SIGHUP, runaggregator reads them again.
#[derive(Parser)]
#[command(
    name = "runaggregator",
    version,
    infer_long_args = true,
    args_override_self = true,
    after_long_help = include_str!("help/runaggregator.txt")
)]
struct Arguments {
    #[command(flatten)]
    files: cli::FileArguments,
    /// Group processes that belong to no application by their program, or by PROPERTY: program, user, unit or container
    #[arg(
        long,
        value_name = "PROPERTY",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "program",
        value_enum,
        hide_possible_values = true
    )]
    auto_group: Option<GroupBy>,
    /// Show totals instead of bandwidth
    #[arg(long)]
    totals: bool,
    /// Also show the bytes that belong to no process, one line for each reason
    #[arg(long)]
    unowned: bool,
    /// Report every mistake in the files, and exit
    #[arg(long)]
    check: bool,
    /// Take each warning about the files for a mistake
    #[arg(long)]
    strict: bool,
    /// Where the counters come from: packets (all IP traffic of sockets), conntrack (all of TCP and UDP), sockets (TCP
    /// payload) or auto (the first of these that works here)
    #[arg(long, value_name = "SOURCE", value_enum, default_value = "auto", hide_possible_values = true)]
    source: CountersFrom,
    #[command(flatten)]
    history: HistoryArguments,
    #[command(flatten)]
    report: ReportArguments,
    #[command(flatten)]
    details: cli::Detailing,
    #[command(flatten)]
    showing: cli::Showing,
    #[command(flatten)]
    serving: cli::Serving,
}

fn main() -> ExitCode {
    let checked = |arguments: Arguments| arguments.report.check::<Arguments>(&arguments.showing).map(|()| arguments);
    match cli::parse(std::env::args_os()).and_then(checked) {
        Ok(arguments) => bwmon::program::exit_code("runaggregator", start(arguments)),
        Err(code) => code,
    }
}

fn start(arguments: Arguments) -> Result<()> {
    if arguments.report.print(&arguments.history, &arguments.showing)? {
        return Ok(());
    }
    let files = arguments.files.files(arguments.strict, arguments.history.is_kept());
    if arguments.check {
        return check_files(&files);
    }
    let mut signals = Signals::take()?;
    let top = arguments.report.is_top();
    let opening = begin(&files)?;
    let read = files.clone();
    let Some(configuration) = signals.unless_ended(move || read.read())?.transpose()? else { return Ok(()) };
    let Some(recording) = arguments.history.open(arguments.unowned, &mut signals)? else { return Ok(()) };
    let (names, history) = (configuration.application_names(), arguments.history.file());
    let web = arguments.serving.start(Named::Application, Vec::new(), names, history)?;
    let settings = AggregatorSettings {
        files,
        group_by: arguments.auto_group.unwrap_or_default(),
        counters_from: arguments.source,
        unowned: arguments.unowned || top || web.is_some(),
        keep: arguments.history.keep(arguments.details.keep(top, web.as_ref())),
    };
    let details = arguments.details.shown(&arguments.showing, top, !arguments.totals, web.as_ref());
    let mut program = AggregatorProgram::start(settings, configuration, details, recording, &opening)?;
    let output = output(&arguments.showing, top, arguments.totals)?;
    let mut output = arguments.details.served(output, top, web, arguments.unowned)?;
    let working = opening.end(program.needs())?;
    run(&mut program, &mut *output, arguments.showing.schedule(), signals, working)
}

#[cfg(test)]
#[path = "../../tests/common/golden.rs"]
mod golden;
#[cfg(test)]
#[path = "../../tests/common/pages.rs"]
mod pages;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Arguments;

    #[test]
    fn the_manual_page_and_the_completions_are_those_of_this_command_line() {
        crate::pages::assert_pages(Arguments::command());
    }
}
