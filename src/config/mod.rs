//! The three configuration files: what their keys mean, and what is wrong with them.
//!
//! One file, from bytes to settings:
//!
//! ```text
//! bytes ──► python2::ini ──► Keys ──────────► settings
//!           sections,        one section,     Selection, PipeSection (monitors file)
//!           key = text       typed values     Application (application file)
//!               │                │            Rule (notification file)
//!               ▼                ▼
//!              Diagnostics ──► check ──► warnings, or InvalidConfiguration
//! ```
//!
//! The settings are types of the folders that act on them: `ledger::Selection`, `pipe::PipeSettings`,
//! `grouping::Application`, `notify::Rule`. This folder only makes them.
//!
//! No reader stops at the first mistake. Each returns the settings that it understood, and adds a diagnostic for each
//! of the others, so that one run reports all mistakes in all files, each with what would be right:
//!
//! ```text
//! monitors.cfg:7: [SSH Pipe] port: "22x" is not a whole number such as 8080
//! monitors.cfg:9: warning: [Web] exlude: unknown key, did you mean exclude?
//! ```
//!
//! Where to read on: `files` reads all three files, each through `read`. `monitors`, `applications` and `notifications` read one each and
//! name its keys. `keys` turns the text of a key into a number, a pattern or a command. `check` decides between
//! warnings and an error. The syntax of the files is in `python2::ini`.

mod applications;
mod check;
mod files;
mod keys;
mod monitors;
mod notifications;
mod read;

pub use crate::python2::ini::{Diagnostic, Diagnostics};
pub use applications::applications;
pub use check::InvalidConfiguration;
pub(crate) use check::check;
pub(crate) use files::ConfigurationShape;
pub use files::{Configuration, Files};
pub(crate) use keys::nearest;
pub(crate) use monitors::{Monitors, PipeSection, monitors};
pub use notifications::notifications;
use notifications::notifications_with;

#[cfg(test)]
mod tests;
