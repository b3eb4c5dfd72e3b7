//! The program runaggregator: monitors and pipes, whose traffic it groups into applications, and notifications.

use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::{Next, Program};

use crate::config::{Configuration, ConfigurationShape, Diagnostics, Files, InvalidConfiguration, PipeSection, check};
use crate::grouping::{Aggregator, GroupBy, Grouping};
use crate::kernel::process::raise_descriptor_limit;
use crate::ledger::{Keep, Selection};
use crate::monitor::{CountersFrom, Monitor, MonitorSettings};
use crate::notify::{Commands, Notifier};
use crate::output::{Announcement, Frame, Moment};
use crate::pipe::Pipe;
use crate::traffic::detail::VisitDetail;
use crate::traffic::rates::{Details, Rates};
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
    commands: Commands,
    notes: Vec<String>,
    /// What the files looked like when they were last read.
    shape: ConfigurationShape,
    reload: Option<Reload>,
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
        check(diagnostics, false)?;
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

impl AggregatorProgram {
    /// Opens the pipes of `configuration`, which was read from the files of `settings`, and begins to count. Rows have `details`, if
    /// there are any.
    ///
    /// # Errors
    /// All ports on which a pipe cannot listen, or the error of [`Monitor::of_this_host`].
    pub fn start(settings: AggregatorSettings, configuration: Configuration, details: Option<Details>) -> Result<Self> {
        let Configuration { monitors, applications, notifications, warnings, shape } = configuration;
        let mut parts = Part::pipes(monitors.pipes)?;
        if !monitors.selections.is_empty() {
            parts.push(Part::monitor(monitors.selections, &settings)?);
        }
        let grouping = Grouping { applications, group_by: settings.group_by };
        Ok(Self {
            aggregator: Aggregator::new(grouping, parts),
            rates: Rates::new(),
            shown_rates: Rates::new(),
            unowned: settings.unowned.then(Rates::new),
            details,
            notifier: Notifier::new(notifications),
            commands: Commands::default(),
            notes: warnings.iter().map(ToString::to_string).collect(),
            shape,
            reload: None,
            settings,
        })
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
        let mut parts = Part::pipes(new)?;
        let has_monitor = self.aggregator.sources().any(|part| matches!(part, Part::Monitor(_)));
        let is_monitored = !monitors.selections.is_empty();
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
        notes
    }

    fn works_unseen(&mut self) -> bool {
        self.notifier.has_rules() || self.aggregator.sources().any(|part| matches!(part, Part::Pipe { .. }))
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
