//! `runaggregator`: monitors and pipes together, a line for each application, and notifications.

use std::time::Instant;

use anyhow::Result;

use crate::config::{Configuration, Diagnostics, Files, InvalidConfiguration, PipeSection, check};
use crate::grouping::{Aggregator, Grouping};
use crate::ledger::Selection;
use crate::monitor::{self, CountersFrom, Monitor};
use crate::notify::{Commands, Notifier};
use crate::output::text as report;
use crate::pipe::{Pipe, raise_descriptor_limit};
use crate::program::{Next, Program, Screen};
use crate::traffic::rates::Usage;
use crate::traffic::source::{Reading, Source};

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The configuration.
    pub files: Files,
    /// Whether what belongs to no application is grouped by program.
    pub auto_group: bool,
    /// Where the monitors' counters come from.
    pub counters_from: CountersFrom,
}

/// The program, for [`run`](crate::program::run).
pub struct AggregatorProgram {
    settings: Settings,
    aggregator: Aggregator<Part>,
    usage: Usage,
    notifier: Notifier,
    commands: Commands,
    notes: Vec<String>,
}

/// One of the sources.
enum Part {
    /// All sections with `type=monitor`: they share one reading of the kernel.
    Monitor(Box<Monitor>),
    Pipe {
        settings: Box<PipeSection>,
        pipe: Pipe,
        stage: Stage,
    },
}

/// A pipe's life.
enum Stage {
    Listening,
    /// The configuration has it no more; its connections go on.
    Retired,
    /// They have ended, and its last figures have been read.
    Over,
}

impl Part {
    fn monitor(selections: Vec<Selection>, counters_from: CountersFrom) -> Result<Self> {
        // What is shown are rates, so only what comes from now on is needed.
        let settings = monitor::Settings { selections, lookback: false, counters_from };
        Ok(Self::Monitor(Box::new(Monitor::of_this_host(settings)?)))
    }

    fn pipes(settings: Vec<PipeSection>) -> Result<Vec<Self>, InvalidConfiguration> {
        if !settings.is_empty() {
            // Without it the pipes work, with fewer connections.
            let _ = raise_descriptor_limit();
        }
        let mut diagnostics = Diagnostics::default();
        let mut pipes = Vec::new();
        for settings in settings {
            match Pipe::bind(settings.pipe.clone()) {
                Ok(pipe) => pipes.push(Self::Pipe { settings: Box::new(settings), pipe, stage: Stage::Listening }),
                Err(error) => diagnostics.add(settings.cannot_bind(&error)),
            }
        }
        check(diagnostics)?;
        Ok(pipes)
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Monitor(monitor) => monitor.as_mut(),
            Self::Pipe { pipe, .. } => pipe,
        }
    }

    /// Whether this is a pipe that accepts connections as these settings say.
    fn is_pipe(&self, wanted: &PipeSection) -> bool {
        matches!(self, Self::Pipe { settings, stage: Stage::Listening, .. } if settings.pipe == wanted.pipe)
    }

    /// Whether this is a pipe that accepts connections on the port that these settings want.
    fn has_port_of(&self, wanted: &PipeSection) -> bool {
        matches!(self, Self::Pipe { pipe, stage: Stage::Listening, .. } if pipe.local_address().port() == wanted.pipe.port)
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

    fn notes(&mut self) -> Vec<String> {
        self.source().notes()
    }
}

impl AggregatorProgram {
    /// Reads the configuration, opens the pipes and begins to count.
    ///
    /// # Errors
    /// Mistakes in the configuration, all of them; ports that cannot be listened on, all of them; or what a
    /// [`Monitor`] cannot do without.
    pub fn start(settings: Settings) -> Result<Self> {
        let Configuration { monitors, applications, notifications, warnings } = settings.files.read()?;
        let mut parts = Part::pipes(monitors.pipes)?;
        if !monitors.selections.is_empty() {
            parts.push(Part::monitor(monitors.selections, settings.counters_from)?);
        }
        let grouping = Grouping { applications, auto_group: settings.auto_group };
        Ok(Self {
            settings,
            aggregator: Aggregator::new(grouping, parts),
            usage: Usage::new(),
            notifier: Notifier::new(notifications),
            commands: Commands::default(),
            notes: warnings.iter().map(ToString::to_string).collect(),
        })
    }

    /// Reads the configuration again. Pipes that are in both go on; the connections of others stay until they close.
    /// Gives what there is to say about it.
    ///
    /// # Errors
    /// As [`start`](Self::start); then everything is as it was.
    fn reload(&mut self) -> Result<Vec<String>> {
        let configuration = self.settings.files.read()?;
        let mut notes: Vec<String> = configuration.warnings.iter().map(ToString::to_string).collect();
        notes.push(format!("read the configuration again: {configuration}"));
        let Configuration { monitors, applications, notifications, .. } = configuration;

        // First what may fail.
        let (known, new): (Vec<_>, Vec<_>) =
            monitors.pipes.into_iter().partition(|wanted| self.aggregator.sources().any(|part| part.is_pipe(wanted)));
        let (taken_by_us, free): (Vec<_>, Vec<_>) =
            new.into_iter().partition(|wanted| self.aggregator.sources().any(|part| part.has_port_of(wanted)));
        let mut parts = Part::pipes(free)?;
        let has_monitor = self.aggregator.sources().any(|part| matches!(part, Part::Monitor(_)));
        let monitored = !monitors.selections.is_empty();
        if monitored && !has_monitor {
            parts.push(Part::monitor(monitors.selections, self.settings.counters_from)?);
        } else {
            self.select(monitors.selections);
        }

        for part in self.aggregator.sources() {
            if !known.iter().any(|wanted| part.is_pipe(wanted)) {
                part.retire();
            }
        }
        match Part::pipes(taken_by_us) {
            Ok(pipes) => parts.extend(pipes),
            Err(mistakes) => notes.extend(mistakes.to_string().lines().map(str::to_owned)),
        }
        parts.into_iter().for_each(|part| self.aggregator.add(part));
        self.aggregator.regroup(Grouping { applications, auto_group: self.settings.auto_group });
        self.notifier.replace(notifications);
        Ok(notes)
    }

    /// Gives the monitor, if there is one, something else to watch, or nothing any more.
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
    fn tick(&mut self, now: Instant) -> Result<Screen> {
        let mut notes = std::mem::take(&mut self.notes);
        let readings = self.aggregator.read(now)?;
        notes.extend(self.aggregator.notes());
        self.aggregator.retain(|part| !part.is_over());
        let rates = self.usage.rates(now, &readings);
        self.commands.reap();
        let found = self.notifier.tick(now, &rates);
        notes.extend(self.notifier.notes());
        for notification in found {
            notes.extend(notification.message(&local_time()));
            notes.extend(self.commands.start(&self.notifier.rules()[notification.rule], &notification).err());
        }
        Ok(Screen { table: report::applications(&rates), notes })
    }

    fn interrupted(&mut self, screen: &mut Screen) -> Next {
        screen.table.extend_from_slice(b"Please wait...\n");
        Next::End
    }

    fn terminated(&mut self, _screen: &mut Screen) -> Next {
        Next::End
    }

    fn hung_up(&mut self, screen: &mut Screen) -> Next {
        match self.reload() {
            Ok(notes) => screen.notes.extend(notes),
            Err(error) => {
                screen.notes.extend(format!("{error:#}").lines().map(str::to_owned));
                screen.notes.push("everything goes on as before".to_owned());
            }
        }
        Next::Continue
    }
}

/// As in `2012-11-22 10:37:01`.
fn local_time() -> String {
    jiff::Zoned::now().strftime("%F %T").to_string()
}
