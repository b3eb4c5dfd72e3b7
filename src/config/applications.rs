//! The application file: which command lines belong to which application.
//!
//! ```text
//! [Web Browsers]
//! firefox=firefox
//! chrome=chrom(e|ium)
//! ```

use super::Diagnostics;
use super::keys::Keys;
use crate::grouping::Application;
use crate::python2::ini;

/// Reads an application file; `file` is its name in messages.
pub fn applications(file: &str, text: &[u8], diagnostics: &mut Diagnostics) -> Vec<Application> {
    let mut applications = Vec::new();
    for section in &ini::parse(file, text, diagnostics) {
        let mut keys = Keys { file, section, diagnostics };
        if section.options.is_empty() {
            keys.warn("name", "no pattern, so nothing belongs to it; add a line such as name=pattern".to_owned());
        }
        let patterns = section.options.iter().filter_map(|option| keys.pattern(&option.key)).collect();
        applications.push(Application { name: section.name.clone(), patterns });
    }
    applications
}
