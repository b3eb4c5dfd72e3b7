//! The application file: which command lines belong to which application.
//!
//! ```text
//! [Web Browsers]
//! firefox=firefox
//! chrome=chrom(e|ium)
//! unit.fetch=^apt-daily\.service$
//! ```
//! A key that begins with a property and a dot matches that; any other, the command line.

use super::Diagnostics;
use super::keys::{Keys, Patterns, sections};
use crate::grouping::{Application, GroupBy};

/// Reads an application file; `file` is its name in messages.
pub fn applications(file: &str, text: &[u8], diagnostics: &mut Diagnostics) -> Vec<Application> {
    let mut applications = Vec::new();
    let mut patterns = Patterns::default();
    for section in &sections(file, text, diagnostics) {
        let mut keys = Keys { file, section, patterns: &mut patterns, diagnostics };
        if section.options.is_empty() {
            keys.warn("name", "no pattern, so nothing belongs to it; add a line such as name=pattern".to_owned());
        }
        let patterns =
            section.options.iter().filter_map(|option| Some((property(&option.key), keys.pattern_of(option)?)));
        let patterns = patterns.collect();
        applications.push(Application { name: section.name.clone(), patterns });
    }
    applications
}

/// The property that the pattern of a key matches.
fn property(key: &str) -> GroupBy {
    let properties = [GroupBy::Program, GroupBy::User, GroupBy::Unit, GroupBy::Container];
    let is_named = |by: &GroupBy| key.strip_prefix(by.name()).is_some_and(|rest| rest.starts_with('.'));
    properties.into_iter().find(is_named).unwrap_or_default()
}
