//! The application file: which command lines belong to which application.
//!
//! ```text
//! [Web Browsers]
//! firefox=firefox
//! chrome=chrom(e|ium)
//! ```

use super::Diagnostics;
use super::keys::{Keys, Patterns, sections};
use crate::grouping::Application;

/// Reads an application file; `file` is its name in messages.
pub fn applications(file: &str, text: &[u8], diagnostics: &mut Diagnostics) -> Vec<Application> {
    let mut applications = Vec::new();
    let mut patterns = Patterns::default();
    for section in &sections(file, text, diagnostics) {
        let mut keys = Keys { file, section, patterns: &mut patterns, diagnostics };
        if section.options.is_empty() {
            keys.warn("name", "no pattern, so nothing belongs to it; add a line such as name=pattern".to_owned());
        }
        let patterns = section.options.iter().filter_map(|option| keys.pattern_of(option)).collect();
        applications.push(Application { name: section.name.clone(), patterns });
    }
    applications
}
