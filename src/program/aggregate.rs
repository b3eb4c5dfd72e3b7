//! The program runaggregator: monitors and pipes, whose traffic it groups into applications, and notifications.

use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use jiff::tz::TimeZone;

use super::cli::Showing;
use super::recording::Recording;
use super::{Next, Program, top};
use crate::calendar;
use crate::config::{self, Configuration, ConfigurationShape, Diagnostics, Files, InvalidConfiguration, PipeSection};
use crate::grouping::{Aggregator, GroupBy, Grouping};
use crate::history::Sums;
use crate::kernel::process::raise_descriptor_limit;
use crate::ledger::{Keep, Selection};
use crate::monitor::{CountersFrom, Monitor, MonitorSettings};
use crate::notify::{Commands, Notifier, Quotas};
use crate::output::json::{Json, Named};
use crate::output::text::{Figures, Text};
use crate::output::top::Top;
use crate::output::{Announcement, Frame, Moment, Output, QuotaNotification};
use crate::pipe::Pipe;
use crate::privileges::{Needs, Opening};
use crate::traffic::detail::VisitDetail;
use crate::traffic::rates::{Details, Rates, Row};
use crate::traffic::source::{Facts, Reading, Source};

/// How long SIGHUP waits for the files; if they take longer, the next ticks look for them.
const RELOAD_AT_ONCE: Duration = Duration::from_millis(90);

/// The settings of a command line.
#[derive(Debug, Clone, Default)]
pub struct AggregatorSettings {
    /// The configuration files.
    pub files: Files,
    /// What groups the processes that belong to no application.
    pub group_by: GroupBy,
    /// Where the monitors' counters come from.
    pub counters_from: CountersFrom,
    /// Whether the bytes without an owner are shown.
    pub unowned: bool,
    /// What monitors keep beside the bytes of those that run.
    pub keep: Keep,
}

/// The program that [`run`](crate::program::run) runs.
pub struct AggregatorProgram {
    settings: AggregatorSettings,
    aggregator: Aggregator<Part>,
    rates: Rates,
    /// The figures at the last tick that was shown, and those of the bytes without an owner; `None` unless they are shown.
    shown_rates: Rates,
    unowned: Option<Rates>,
    details: Option<Details>,
    notifier: Notifier,
    quotas: Quotas,
    recording: Option<Recording>,
    commands: Commands,
    notes: Vec<String>,
    /// What the files looked like when they were last read.
    shape: ConfigurationShape,
    reload: Option<Reload>,
    /// Whether it has to give up the rights of a monitor, since its files had none as it began.
    gives_up_monitor: bool,
}

/// The files while a thread reads them again: the disk may be slow, or a pipe.
struct Reload {
    read: Receiver<Result<Configuration, InvalidConfiguration>>,
    /// Whether SIGHUP came once more.
    again: bool,
}

/// A source that the aggregator reads.
enum Part {
    /// All sections with `type=monitor`: they share one reading of the kernel.
    Monitor(Box<Monitor>),
    Pipe {
        section: Box<PipeSection>,
        pipe: Box<Pipe>,
        stage: Stage,
    },
}

/// The stage of a pipe's life.
enum Stage {
    Listening,
    /// The configuration no longer has it; its connections go on.
    Retired,
    /// Its connections have ended, and its last figures have been read.
    Over,
}

impl Part {
    fn monitor(selections: Vec<Selection>, settings: &AggregatorSettings) -> Result<Self> {
        // The output shows rates, so only bytes from now on are needed.
        let (counters_from, keep) = (settings.counters_from, settings.keep);
        let settings = MonitorSettings { selections, lookback: false, counters_from, keep };
        Ok(Self::Monitor(Box::new(Monitor::of_this_host(settings)?)))
    }

    fn pipes(sections: Vec<PipeSection>) -> Result<Vec<Self>, InvalidConfiguration> {
        if !sections.is_empty() {
            // If this fails, fewer connections can be open at a time, and further clients wait.
            let _ = raise_descriptor_limit();
        }
        let mut diagnostics = Diagnostics::default();
        let mut pipes = Vec::new();
        for section in sections {
            match Pipe::bind(section.pipe.clone()) {
                Ok(pipe) => {
                    pipes.push(Self::Pipe { section: Box::new(section), pipe: Box::new(pipe), stage: Stage::Listening })
                }
                Err(error) => diagnostics.add(section.cannot_bind(&error)),
            }
        }
        config::check(diagnostics, false)?;
        Ok(pipes)
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Monitor(monitor) => monitor.as_mut(),
            Self::Pipe { pipe, .. } => pipe.as_mut(),
        }
    }

    /// Whether this is a pipe that listens where a section says, so that it can take on what else the section says. A port
    /// that the kernel chose belongs to its section, or to one with the same target.
    fn listens_as(&self, wanted: &PipeSection) -> bool {
        let Self::Pipe { section, pipe, stage: Stage::Listening } = self else { return false };
        pipe.listens_as(&wanted.pipe)
            && (wanted.pipe.port != 0 || section.pipe == wanted.pipe || section.is_same_section(wanted))
    }

    /// Takes on what a section says.
    fn take_on(&mut self, wanted: PipeSection) {
        if let Self::Pipe { section, pipe, .. } = self {
            pipe.reconfigure(wanted.pipe.clone());
            **section = wanted;
        }
    }

    /// Closes the port, if this is a pipe; its connections go on.
    fn retire(&mut self) {
        if let Self::Pipe { pipe, stage: stage @ Stage::Listening, .. } = self {
            pipe.stop_accepting();
            *stage = Stage::Retired;
        }
    }

    fn is_over(&self) -> bool {
        matches!(self, Self::Pipe { stage: Stage::Over, .. })
    }
}

impl Source for Part {
    fn read(&mut self, now: Instant) -> Result<Vec<Reading>> {
        if let Self::Pipe { pipe, stage: stage @ Stage::Retired, .. } = self
            && pipe.is_finished()
        {
            *stage = Stage::Over;
        }
        self.source().read(now)
    }

    fn each_detail(&self, visit: &mut VisitDetail<'_>) {
        match self {
            Self::Monitor(monitor) => monitor.each_detail(visit),
            Self::Pipe { pipe, .. } => pipe.each_detail(visit),
        }
    }

    fn unowned(&self) -> Vec<Reading> {
        match self {
            Self::Monitor(monitor) => monitor.unowned(),
            Self::Pipe { .. } => Vec::new(),
        }
    }

    fn notes(&mut self) -> Vec<String> {
        self.source().notes()
    }

    fn last_notes(&mut self) -> Vec<String> {
        self.source().last_notes()
    }

    fn facts(&self) -> Facts {
        match self {
            Self::Monitor(monitor) => monitor.facts(),
            Self::Pipe { pipe, .. } => pipe.facts(),
        }
    }
}

/// How the applications are shown: with `top`, in the interactive view; `totals`: with totals instead of bandwidth.
///
/// # Errors
/// Those of [`Top::new`].
pub fn output(showing: &Showing, top: bool, totals: bool) -> Result<Box<dyn Output>> {
    if top {
        return Ok(Box::new(Top::new(top::applications())?));
    }
    if showing.json {
        return Ok(Box::new(Json::new(Named::Application)));
    }
    let figures = if totals { Figures::Totals } else { Figures::ApplicationRates };
    let text = Text::new(figures).of("application", "applications").wide(showing.wide);
    Ok(Box::new(text.with_idle_note("nothing to show yet: no application has moved more than 1 KiB/s")))
}

/// What the program may have to do, whatever its files say now.
fn needs(files: &Files) -> Needs {
    Needs {
        ports: files.monitors.is_some(),
        files: true,
        commands: files.notifications.is_some(),
        ..Needs::of_monitor(true)
    }
}

/// Keeps what the program may need, before its first thread starts.
///
/// # Errors
/// Those of [`Opening::begin`].
pub fn begin(files: &Files) -> Result<Opening> {
    Opening::begin(needs(files).to_open(files.has_history))
}

impl AggregatorProgram {
    /// Opens the pipes of `configuration`, which was read from the files of `settings`, and begins to count, and to record. Rows have
    /// `details`, if there are any.
    ///
    /// # Errors
    /// All ports on which a pipe cannot listen, or the error of [`Monitor::of_this_host`].
    pub fn start(
        settings: AggregatorSettings,
        configuration: Configuration,
        details: Option<Details>,
        recording: Option<Recording>,
        opening: &Opening,
    ) -> Result<Self> {
        let Configuration { monitors, applications, notifications, warnings, shape } = configuration;
        let mut parts = Part::pipes(monitors.pipes)?;
        let gives_up_monitor = monitors.selections.is_empty() && opening.could_monitor();
        if !monitors.selections.is_empty() {
            parts.push(Part::monitor(monitors.selections, &settings)?);
        }
        let grouping = Grouping { applications, group_by: settings.group_by };
        let notifier = Notifier::new(notifications);
        let mut quotas = Quotas::new();
        notifier.set_quotas(&mut quotas);
        Ok(Self {
            aggregator: Aggregator::new(grouping, parts),
            rates: Rates::new(),
            shown_rates: Rates::new(),
            unowned: settings.unowned.then(Rates::new),
            details,
            notifier,
            quotas,
            recording,
            commands: Commands::default(),
            notes: warnings.iter().map(ToString::to_string).collect(),
            shape,
            reload: None,
            gives_up_monitor,
            settings,
        })
    }

    /// What it may have to do from now on.
    pub fn needs(&self) -> Needs {
        let needs = needs(&self.settings.files);
        if self.gives_up_monitor { needs.without_monitor() } else { needs }
    }

    /// Begins to read the configuration again. Returns messages for the user.
    fn begin_reload(&mut self) -> Vec<String> {
        if let Some(reload) = &mut self.reload {
            reload.again = true;
            return vec!["the configuration is still being read; after that, it is read again".to_owned()];
        }
        let (files, shape) = (self.settings.files.clone(), self.shape);
        let (done, read) = channel();
        let read_again = move || {
            // If nobody waits for it, the program has ended.
            let _ = done.send(files.read_again(shape));
        };
        match std::thread::Builder::new().spawn(read_again) {
            Ok(_) => self.reload = Some(Reload { read, again: false }),
            Err(error) => return vec![format!("cannot read the configuration again: cannot start a thread: {error}")],
        }
        self.end_reload(RELOAD_AT_ONCE)
    }

    /// Uses the configuration if it has been read, or is within `patience`. Returns messages for the user.
    fn end_reload(&mut self, patience: Duration) -> Vec<String> {
        let Some(reload) = &self.reload else { return Vec::new() };
        let result = match reload.read.recv_timeout(patience) {
            Ok(Ok(configuration)) => self.use_configuration(configuration),
            Ok(Err(invalid)) => Err(invalid.into()),
            Err(RecvTimeoutError::Timeout) => return Vec::new(),
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!("the thread that reads the configuration has panicked")),
        };
        let mut notes = result.unwrap_or_else(|error| {
            let errors = format!("{error:#}");
            let unchanged = "everything goes on as before".to_owned();
            errors.lines().map(str::to_owned).chain([unchanged]).collect()
        });
        if self.reload.take().is_some_and(|reload| reload.again) {
            notes.extend(self.begin_reload());
        }
        notes
    }

    /// Goes on with another configuration. A pipe whose port is in the old and the new one keeps it open, and takes on the
    /// rest; the connections of the others stay until they close. Returns messages for the user.
    ///
    /// # Errors
    /// As for [`start`](Self::start); then nothing has changed.
    fn use_configuration(&mut self, configuration: Configuration) -> Result<Vec<String>> {
        let mut notes: Vec<String> = configuration.warnings.iter().map(ToString::to_string).collect();
        notes.push(format!("read the configuration again: {configuration}"));
        let Configuration { monitors, applications, notifications, shape, .. } = configuration;

        // First the steps that may fail.
        let (kept, new) = self.match_pipes(monitors.pipes);
        let has_monitor = self.aggregator.sources().any(|part| matches!(part, Part::Monitor(_)));
        let is_monitored = !monitors.selections.is_empty();
        if is_monitored && self.gives_up_monitor {
            bail!(
                "type=monitor: this program began without a monitor, and has given up the rights that one needs; start it anew"
            );
        }
        let mut parts = Part::pipes(new)?;
        let mut selections = monitors.selections;
        if is_monitored && !has_monitor {
            parts.push(Part::monitor(std::mem::take(&mut selections), &self.settings)?);
        }

        for (part, kept) in self.aggregator.sources().zip(kept) {
            match kept {
                Some(section) => part.take_on(section),
                None => part.retire(),
            }
        }
        if has_monitor {
            self.select(selections);
        }
        parts.into_iter().for_each(|part| self.aggregator.add(part));
        self.aggregator.regroup(Grouping { applications, group_by: self.settings.group_by });
        self.notifier.replace(notifications);
        self.notifier.set_quotas(&mut self.quotas);
        self.shape = shape;
        Ok(notes)
    }

    /// Gives each section to one of the pipes that listen where it says. Returns the section of each source that gets one,
    /// and the sections for which there is none.
    fn match_pipes(&mut self, wanted: Vec<PipeSection>) -> (Vec<Option<PipeSection>>, Vec<PipeSection>) {
        let parts: Vec<&mut Part> = self.aggregator.sources().collect();
        let mut kept: Vec<Option<PipeSection>> = parts.iter().map(|_| None).collect();
        let mut new = Vec::new();
        for section in wanted {
            let is_free = |at: usize| kept[at].is_none() && parts[at].listens_as(&section);
            match (0..parts.len()).find(|&at| is_free(at)) {
                Some(at) => kept[at] = Some(section),
                None => new.push(section),
            }
        }
        (kept, new)
    }

    /// Asks the history what quotas need to know, and compares what has moved with them.
    fn check_quotas(&mut self, at: Moment, rows: &[Row]) -> Vec<QuotaNotification> {
        let Some(recording) = &mut self.recording else { return Vec::new() };
        let history = recording.history();
        for Sums { section, since, bytes, told } in history.sums() {
            self.quotas.load(&section, since, &bytes, &told);
        }
        let mut found = self.quotas.tick(calendar::seconds(at.wall_clock), &TimeZone::system(), rows);
        for (number, section, since) in self.quotas.unasked() {
            if history.ask_for_sums(&section, since) {
                self.quotas.asked(number);
            }
        }
        for quota in &mut found {
            let Some(rule) = self.notifier.rule(quota.rule) else { continue };
            match self.commands.queue_quota(quota.rule, rule, quota) {
                Ok(()) => self.quotas.confirm(quota),
                Err(full) => quota.command_failure = Some(full),
            }
        }
        self.quotas.remember(|told| history.remember_told(&told.section, &told.name, told.period_start, told.bytes));
        found
    }

    /// Gives the monitor, if there is one, other selections. Without any selection, drops the monitor.
    fn select(&mut self, selections: Vec<Selection>) {
        if selections.is_empty() {
            self.aggregator.retain(|part| !matches!(part, Part::Monitor(_)));
            return;
        }
        let monitor = self.aggregator.sources().find_map(|part| match part {
            Part::Monitor(monitor) => Some(monitor),
            Part::Pipe { .. } => None,
        });
        if let Some(monitor) = monitor {
            monitor.select(selections);
        }
    }
}

impl Program for AggregatorProgram {
    fn tick(&mut self, at: Moment, shown: bool) -> Result<Frame> {
        let now = at.monotonic;
        let mut frame = Frame::at(at);
        frame.notes = std::mem::take(&mut self.notes);
        frame.notes.extend(self.end_reload(Duration::ZERO));
        let readings = self.aggregator.read(now)?;
        frame.notes.extend(self.aggregator.notes());
        frame.facts = self.aggregator.facts();
        // Before what a pipe that is over has moved last is forgotten.
        if let Some(recording) = &mut self.recording {
            recording.tick(at, &self.aggregator, &readings);
            frame.notes.extend(recording.history().notes());
        }
        self.aggregator.retain(|part| !part.is_over());
        if shown {
            (frame.interval, frame.rows) = self.shown_rates.rows(now, readings.clone());
            if let Some(details) = &mut self.details {
                details.enter(&mut frame.rows, &self.aggregator, at.monotonic);
            }
            if let Some(unowned) = &mut self.unowned {
                (_, frame.unowned) = unowned.rows(now, self.aggregator.unowned());
            }
        }
        let (_, rows) = self.rates.rows(now, readings);
        frame.notifications = self.notifier.tick(now, &rows);
        for notification in &mut frame.notifications {
            let Some(rule) = self.notifier.rule(notification.rule) else { continue };
            if let Err(full) = self.commands.queue(notification.rule, rule, notification) {
                notification.command_failure = Some(full);
                self.notifier.try_again(notification);
            }
        }
        frame.quotas = self.check_quotas(at, &rows);
        frame.notes.extend(self.notifier.notes());
        frame.notes.extend(self.commands.tick(now));
        Ok(frame)
    }

    fn interrupted(&mut self, announcements: &mut Vec<Announcement>) -> Next {
        announcements.push(Announcement::Ending);
        Next::End
    }

    fn terminated(&mut self, _announcements: &mut Vec<Announcement>) -> Next {
        Next::End
    }

    fn last_notes(&mut self) -> Vec<String> {
        let mut notes = std::mem::take(&mut self.notes);
        notes.extend(self.aggregator.last_notes());
        notes.extend(self.notifier.notes());
        notes.extend(self.recording.as_mut().into_iter().flat_map(|recording| recording.history().finish()));
        notes
    }

    fn works_unseen(&mut self) -> bool {
        self.recording.is_some()
            || self.notifier.has_rules()
            || self.aggregator.sources().any(|part| matches!(part, Part::Pipe { .. }))
    }

    fn is_reloading(&self) -> bool {
        self.reload.is_some()
    }

    fn hung_up(&mut self, announcements: &mut Vec<Announcement>) -> Next {
        let notes = self.begin_reload();
        announcements.extend(notes.into_iter().map(Announcement::Note));
        Next::Continue
    }
}

/// Reads the configuration files, and prints what they hold and how many warnings there are; the warnings go to stderr.
///
/// # Errors
/// All mistakes in the files.
pub fn check_files(files: &Files) -> Result<()> {
    let configuration = files.read()?;
    for warning in &configuration.warnings {
        let _ = writeln!(std::io::stderr(), "{warning}");
    }
    let verdict = match configuration.warnings.len() {
        0 => "no mistake".to_owned(),
        1 => "1 warning".to_owned(),
        count => format!("{count} warnings"),
    };
    let _ = writeln!(std::io::stdout(), "{configuration}: {verdict}");
    Ok(())
}
