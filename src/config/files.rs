//! The files of a command line, read as a whole.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Finding, Findings, Mistakes, Monitors, applications, monitors, notifications};
use crate::grouping::Application;
use crate::ledger::Selection;
use crate::notify::rule::NotificationSettings;

/// Which files to read.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// The monitors file; without one everything is monitored.
    pub monitors: Option<PathBuf>,
    /// The application file; without one there are no applications.
    pub applications: Option<PathBuf>,
    /// The notification file; without one nobody is notified.
    pub notifications: Option<PathBuf>,
}

/// What the files say.
#[derive(Debug)]
pub struct Configuration {
    /// What is watched.
    pub monitors: Monitors,
    /// How it is grouped.
    pub applications: Vec<Application>,
    /// When somebody is told.
    pub notifications: Vec<NotificationSettings>,
    /// What is probably not meant so.
    pub warnings: Vec<Finding>,
}

impl Files {
    /// Reads them all.
    ///
    /// # Errors
    /// All the mistakes of all the files. One that cannot be read is a mistake, too.
    pub fn read(&self) -> Result<Configuration, Mistakes> {
        let mut findings = Findings::default();
        let monitors = match read(self.monitors.as_deref(), &mut findings, monitors) {
            Some(monitors) => monitors,
            None => Monitors { selections: vec![Selection::default()], pipes: Vec::new() },
        };
        let applications = read(self.applications.as_deref(), &mut findings, applications).unwrap_or_default();
        let notifications = read(self.notifications.as_deref(), &mut findings, notifications).unwrap_or_default();
        let warnings = findings.warnings()?;
        Ok(Configuration { monitors, applications, notifications, warnings })
    }
}

/// What `parse` makes of the file, if there is to be one.
fn read<T>(
    path: Option<&Path>,
    findings: &mut Findings,
    parse: impl FnOnce(&str, &[u8], &mut Findings) -> T,
) -> Option<T> {
    let path = path?;
    let file = path.display().to_string();
    match fs::read(path) {
        Ok(text) => Some(parse(&file, &text, findings)),
        Err(error) => {
            let what = format!("cannot be read: {error}");
            findings.add(Finding { file, line: None, is_warning: false, section: None, key: None, what });
            None
        }
    }
}

/// How much there is of each: `2 monitors, 1 pipe, 12 applications, 1 notification`.
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
