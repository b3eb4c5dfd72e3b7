//! Reads all configuration files that a command line names.

use std::fmt;
use std::path::PathBuf;

use super::read::{read, read_at_rest};
use super::{
    Diagnostic, Diagnostics, InvalidConfiguration, Monitors, applications, check, monitors, notifications_with,
};
use crate::grouping::Application;
use crate::ledger::Selection;
use crate::notify::Rule;

/// Which files to read. An empty path is no file, as in the original.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// The monitors file; without it, the program counts all traffic and opens no pipe.
    pub monitors: Option<PathBuf>,
    /// The application file; without it, there are no applications.
    pub applications: Option<PathBuf>,
    /// The notification file; without it, there are no notifications.
    pub notifications: Option<PathBuf>,
    /// Whether a warning is an error.
    pub strict: bool,
    /// Whether the program keeps a history, which quotas need.
    pub has_history: bool,
}

/// The contents of all files.
#[derive(Debug)]
pub struct Configuration {
    /// Which traffic to count, and which pipes to open.
    pub(crate) monitors: Monitors,
    /// How to group it.
    pub(crate) applications: Vec<Application>,
    /// When to notify.
    pub(crate) notifications: Vec<Rule>,
    /// What the user probably did not mean, sorted by file and line.
    pub warnings: Vec<Diagnostic>,
    /// What its files are known by.
    pub(crate) shape: ConfigurationShape,
}

impl Files {
    /// Reads all files.
    ///
    /// # Errors
    /// All mistakes in all files. A file that cannot be read is a mistake, too.
    pub fn read(&self) -> Result<Configuration, InvalidConfiguration> {
        self.read_after(None)
    }

    /// Reads all files again, after `before`.
    ///
    /// # Errors
    /// As for [`read`](Self::read). A file that seems to be half-written is a mistake, too: one that is empty now, or has
    /// lost the end of its last line.
    pub(crate) fn read_again(&self, before: ConfigurationShape) -> Result<Configuration, InvalidConfiguration> {
        self.read_after(Some(before))
    }

    fn read_after(&self, before: Option<ConfigurationShape>) -> Result<Configuration, InvalidConfiguration> {
        let mut reader = Reader { before, shape: ConfigurationShape::default(), diagnostics: Diagnostics::default() };
        let none = Monitors { selections: vec![Selection::default()], pipes: Vec::new() };
        let monitors = reader.read(0, "--monitor-config", self.monitors.as_ref(), monitors).unwrap_or(none);
        let applications = reader.read(1, "--app-config", self.applications.as_ref(), applications).unwrap_or_default();
        let has_history = self.has_history;
        let notifications = |file: &str, text: &[u8], diagnostics: &mut Diagnostics| {
            notifications_with(has_history, file, text, diagnostics)
        };
        let notifications =
            reader.read(2, "--notification-config", self.notifications.as_ref(), notifications).unwrap_or_default();
        let warnings = check(reader.diagnostics, self.strict)?;
        Ok(Configuration { monitors, applications, notifications, warnings, shape: reader.shape })
    }
}

/// Reads one file after the other.
struct Reader {
    before: Option<ConfigurationShape>,
    shape: ConfigurationShape,
    diagnostics: Diagnostics,
}

impl Reader {
    /// What `parse` returns for the file of this option; `None` if there is no path or the file cannot be read.
    fn read<T>(
        &mut self,
        at: usize,
        option: &str,
        path: Option<&PathBuf>,
        parse: impl FnOnce(&str, &[u8], &mut Diagnostics) -> T,
    ) -> Option<T> {
        let path = path?;
        if path.as_os_str().is_empty() {
            let message = "names no file, so it has no effect; leave it out or name one".to_owned();
            let warning = Diagnostic { is_warning: true, ..Diagnostic::error(option, None, message) };
            self.diagnostics.add(warning);
            return None;
        }
        let file = path.display().to_string();
        let text = match self.before {
            None => read(path),
            Some(_) => read_at_rest(path),
        };
        let read = text.and_then(|text| {
            self.shape.0[at] = FileShape::of(&text);
            let missing = self.before.and_then(|before| before.0[at].lost_in(self.shape.0[at]));
            missing.map_or(Ok(text), |missing| Err(missing.to_owned()))
        });
        match read {
            Ok(text) => Some(parse(&file, &text, &mut self.diagnostics)),
            Err(message) => {
                self.diagnostics.add(Diagnostic::error(&file, None, message));
                None
            }
        }
    }
}

/// What the files are known by when they are read again, in the order of the fields of [`Files`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ConfigurationShape([FileShape; 3]);

/// A half-written file has lost one of these.
#[derive(Debug, Clone, Copy, Default)]
struct FileShape {
    has_text: bool,
    last_line_has_end: bool,
}

impl FileShape {
    fn of(text: &[u8]) -> Self {
        Self { has_text: !text.trim_ascii().is_empty(), last_line_has_end: text.ends_with(b"\n") }
    }

    /// What this file had and `now` has not.
    fn lost_in(self, now: Self) -> Option<&'static str> {
        if self.has_text && !now.has_text {
            return Some("is empty: is it still being written? If it is to have no section, write a comment into it");
        }
        let is_cut = self.last_line_has_end && !now.last_line_has_end;
        is_cut.then_some("has no newline at its end any more: is it still being written?")
    }
}

impl Configuration {
    /// The names of the applications.
    pub fn application_names(&self) -> Vec<String> {
        self.applications.iter().map(|application| application.name.clone()).collect()
    }
}

/// The number of each: `2 monitors, 1 pipe, 12 applications, 1 notification`.
impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.monitors.selections.len(), "monitor"),
            (self.monitors.pipes.len(), "pipe"),
            (self.applications.len(), "application"),
            (self.notifications.len(), "notification"),
        ];
        for (i, (count, what)) in counts.into_iter().enumerate() {
            let (comma, plural) = (if i == 0 { "" } else { ", " }, if count == 1 { "" } else { "s" });
            write!(f, "{comma}{count} {what}{plural}")?;
        }
        Ok(())
    }
}
