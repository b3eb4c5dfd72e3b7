//! Parsing of the three command lines, with messages in the words of this program.

use std::ffi::OsString;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgGroup, Command, Error, Parser, ValueHint};

use super::Schedule;
use crate::config::{Files, nearest};
use crate::ledger::Keep;
use crate::output::json::Named;
use crate::output::top::REMOTES;
use crate::output::{Announcement, Output};
use crate::python2::int::{int, port};
use crate::python2::pattern::Pattern;
use crate::traffic::host_names::HostNames;
use crate::traffic::rates::Details;
use crate::web::metrics::{Label, MetricsSettings};
use crate::web::served::{Served, Shows};
use crate::web::{self, Web};

/// Parses `words`, of which the first is the program's name.
///
/// # Errors
/// The exit code with which the program ends at once: success after it has printed the help or the version on stdout, 2
/// after it has printed on stderr what is wrong with the words, and the usage.
pub fn parse<Arguments: Parser>(words: impl IntoIterator<Item = OsString>) -> Result<Arguments, ExitCode> {
    Arguments::try_parse_from(expand(words, &mut Arguments::command())).map_err(|error| {
        if !error.use_stderr() {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        print_error(in_our_words(error, &mut Arguments::command()), &mut Arguments::command())
    })
}

/// The options of the original, and whether each has a value.
const ORIGINAL: [(&str, bool); 10] = [
    ("app-config", true),
    ("auto-group", false),
    ("bandwidth", false),
    ("exclude", true),
    ("help", false),
    ("ignore-local", false),
    ("include", true),
    ("monitor-config", true),
    ("no-lookback", false),
    ("notification-config", true),
];

/// The words, with the options of the original in full: an abbreviation that meant one of them still does, whatever options
/// there are now.
pub fn expand(words: impl IntoIterator<Item = OsString>, command: &mut Command) -> Vec<OsString> {
    command.build();
    let known: Vec<&str> = command.get_arguments().filter_map(|argument| argument.get_long()).collect();
    let original: Vec<_> = ORIGINAL.into_iter().filter(|(option, _)| known.contains(option)).collect();
    let (mut is_value, mut is_over) = (false, false);
    let expand = |word: OsString| {
        if std::mem::take(&mut is_value) || is_over {
            return word;
        }
        is_over = word == "--";
        let Some(text) = word.to_str().and_then(|text| text.strip_prefix("--")).filter(|text| !text.is_empty()) else {
            return word;
        };
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let mut meant = original.iter().filter(|(option, _)| option.starts_with(name));
        let (Some((option, has_value)), None) = (meant.next(), meant.next()) else { return word };
        if known.contains(&name) && name != *option {
            return word;
        }
        is_value = *has_value && value.is_none();
        match value {
            Some(value) => format!("--{option}={value}").into(),
            None => format!("--{option}").into(),
        }
    };
    words.into_iter().map(expand).collect()
}

/// The files that runaggregator reads.
#[derive(Debug, clap::Args)]
pub struct FileArguments {
    /// Which command lines belong to which application
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, allow_hyphen_values = true)]
    app_config: Option<OsString>,
    /// What to monitor and which pipes to open; without it, monitor everything and open none
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, allow_hyphen_values = true)]
    monitor_config: Option<OsString>,
    /// When to notify, and how
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, allow_hyphen_values = true)]
    notification_config: Option<OsString>,
}

impl FileArguments {
    /// Which files to read; `strict`: a warning about them is an error.
    pub fn files(self, strict: bool, has_history: bool) -> Files {
        let [monitors, applications, notifications] =
            [self.monitor_config, self.app_config, self.notification_config].map(|file| file.map(PathBuf::from));
        Files { monitors, applications, notifications, strict, has_history }
    }
}

/// How the figures are shown: the arguments that all three programs have.
#[derive(Debug, clap::Args)]
pub struct Showing {
    /// Show one JSON record per line, as docs/json.md describes them
    #[arg(long)]
    pub json: bool,
    /// Cut no names
    #[arg(long)]
    pub wide: bool,
    /// End after this many refreshes
    #[arg(long, value_name = "N", value_parser = number(1..=u32::MAX), allow_negative_numbers = true)]
    count: Option<u32>,
    /// Refresh every so many seconds, 0.1 to 86400
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds, allow_negative_numbers = true)]
    interval: Duration,
}

impl Showing {
    /// When the figures are shown.
    pub fn schedule(&self) -> Schedule {
        Schedule { interval: self.interval, count: self.count.map(u64::from) }
    }
}

/// What is shown of each process, group or application beside its bytes.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("remote ends").args(["remotes", "top"]).multiple(true)))]
pub struct Detailing {
    /// Also show the remote ends with the most bytes, N of each
    #[arg(
        long,
        value_name = "N",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "5",
        value_parser = number(1..=100)
    )]
    remotes: Option<u32>,
    /// Also show the names of the remote ends' addresses
    #[arg(long, requires = "remote ends")]
    resolve: bool,
    /// Keep the totals of what has ended
    #[arg(long)]
    keep: bool,
}

impl Detailing {
    /// What the monitors keep; `top`: for the interactive view.
    pub fn keep(&self, top: bool, web: Option<&Web>) -> Keep {
        Keep { remotes: top || self.remotes.is_some() || web.is_some(), ended: self.keep }
    }

    /// The details of each row, if they are shown, as they are in the interactive view (`top`): in lines that have `rates`, with the
    /// remote ends that move the most. A server alone needs them only while somebody looks.
    pub fn shown(&self, showing: &Showing, top: bool, rates: bool, web: Option<&Web>) -> Option<Details> {
        let remotes = match self.remotes {
            Some(remotes) => remotes as usize,
            None if top => REMOTES,
            None => web.map_or(0, |_| web::REMOTES),
        };
        let details = Details::new(remotes);
        let details = if self.resolve { details.with_names(HostNames::of_this_host()) } else { details };
        if !showing.json && !top && self.remotes.is_none() {
            return web.map(|web| details.for_interest(Arc::clone(web.interest())));
        }
        Some(if rates && !showing.json { details.by_rate() } else { details })
    }

    /// An output that also serves, if there is a server, and has said where; by itself, it shows bytes without an owner only if
    /// `unowned`, or if it is the interactive view (`top`).
    ///
    /// # Errors
    /// As for [`Output::announce`].
    pub fn served(
        &self,
        output: Box<dyn Output>,
        top: bool,
        web: Option<Web>,
        unowned: bool,
    ) -> Result<Box<dyn Output>> {
        let Some(web) = web else { return Ok(output) };
        let shows = Shows { unowned: unowned || top, remotes: top || self.remotes.is_some() };
        let note = Announcement::Note(web.note());
        let mut served = Served::new(output, shows, web);
        served.announce(&[note])?;
        Ok(Box::new(served))
    }
}

/// The arguments of the server.
#[derive(Debug, clap::Args)]
pub struct Serving {
    /// Also serve a live page, JSON and metrics for Prometheus over HTTP, on 127.0.0.1:8000 unless this says otherwise
    #[arg(
        long,
        value_name = "[ADDRESS:]PORT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "8000",
        value_parser = listen
    )]
    http: Option<SocketAddr>,
    /// The most applications that have metrics of their own; the others have one sum
    #[arg(long, value_name = "N", default_value = "100", requires = "http", value_parser = number(1..=10_000), allow_negative_numbers = true)]
    metrics_top: u32,
}

impl Serving {
    /// Starts the server, if there is to be one. `named` is what rows with a name are; the applications that are known now have
    /// metrics from the start, and the page shows the `history`, if there is one.
    ///
    /// # Errors
    /// As for [`Web::start`].
    pub fn start(
        &self,
        named: Named,
        labels: Vec<Label>,
        applications: Vec<String>,
        history: Option<PathBuf>,
    ) -> Result<Option<Web>> {
        let settings = MetricsSettings { labels, top: self.metrics_top as usize, applications };
        self.http.map(|address| Web::start(address, named, settings, history)).transpose()
    }
}

/// Parses the address and port to serve on; a port alone is one of the loopback address.
fn listen(text: &str) -> Result<SocketAddr, String> {
    let wrong = || "a port, or an address and a port, such as 8000, 0.0.0.0:8000 or [::1]:8000, is expected".to_owned();
    match text.parse::<u16>() {
        Ok(port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        Err(_) => text.parse().map_err(|_| wrong()),
    }
}

/// Parses a time from 0.1 seconds to a day.
fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || "a number of seconds from 0.1 to 86400 is expected".to_owned();
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    if (0.1..=86400.0).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(wrong()) }
}

/// Prints what is wrong with a command line whose words are right one by one. Returns the exit code for that.
pub fn usage_error<Arguments: Parser>(message: &str) -> ExitCode {
    let mut command = Arguments::command();
    print_error(command.error(ErrorKind::ValueValidation, message), &mut command)
}

fn print_error(error: Error, command: &mut Command) -> ExitCode {
    let _ = error.print();
    // clap leaves the usage out if a value is missing or wrong.
    if !error.render().to_string().contains("Usage:") {
        let _ = writeln!(std::io::stderr(), "\n{}", command.render_usage());
    }
    ExitCode::from(2)
}

/// For an unknown option, clap suggests any that shares a few letters, and to pass it as a value.
fn in_our_words(mut error: Error, command: &mut Command) -> Error {
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else { return error };
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let unknown = unknown.clone();
    error.remove(ContextKind::Suggested);
    error.remove(ContextKind::SuggestedArg);
    if let Some(unknown) = unknown.strip_prefix("--") {
        command.build();
        let mut options: Vec<&str> = command.get_arguments().filter_map(|argument| argument.get_long()).collect();
        options.sort_unstable();
        let longer: Vec<&str> = options.iter().copied().filter(|option| option.starts_with(unknown)).collect();
        if longer.len() > 1 {
            let message = format!("'--{unknown}' may be --{}; write more of it", longer.join(" or --"));
            return command.error(ErrorKind::UnknownArgument, message);
        }
        if let Some(nearest) = nearest(unknown, &options) {
            error.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{nearest}")));
        }
    }
    error.insert(ContextKind::Usage, ContextValue::StyledStr(command.render_usage()));
    error
}

/// A parser of whole numbers within `range`.
pub fn number(range: RangeInclusive<u32>) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = int(text).map_err(|_| "not a whole number".to_owned())?;
        let within = u32::try_from(number).ok().filter(|number| range.contains(number));
        within.ok_or_else(|| format!("not between {} and {}", range.start(), range.end()))
    }
}

/// The port to connect to that `text` stands for.
///
/// # Errors
/// If `text` is no port, or 0, to which nothing can connect.
pub fn target_port(text: &str) -> Result<u16, String> {
    match port(text) {
        Ok(0) => Err("nothing can connect to port 0; the ports are 1 to 65535".to_owned()),
        Ok(port) => Ok(port),
        Err(error) => Err(error.to_string()),
    }
}

/// The host that `text` names.
///
/// # Errors
/// If it names none.
pub fn host(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("this names no host; for this host, write localhost".to_owned());
    }
    Ok(text.to_owned())
}

/// The IPv4 or IPv6 address that `text` stands for.
///
/// # Errors
/// If it stands for none.
pub fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "not an address such as 127.0.0.1 or ::1".to_owned())
}

/// A parser of patterns, which need not be UTF-8.
pub fn pattern() -> impl TypedValueParser<Value = Pattern> {
    OsStringValueParser::new().try_map(|text| Pattern::new(text.as_encoded_bytes()))
}
