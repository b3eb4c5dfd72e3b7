//! The application file: which command lines are which application.
//!
//! ```text
//! [Web Browsers]
//! firefox=firefox
//! chrome=chrom(e|ium)
//! ```

use super::{Findings, Keys, sections};
use crate::grouping::Application;

/// Reads an application file; `file` is how messages call it.
pub fn applications(file: &str, text: &[u8], findings: &mut Findings) -> Vec<Application> {
    let mut read = Vec::new();
    for section in &sections(file, text, findings) {
        let mut keys = Keys { file, section, findings };
        if section.options.is_empty() {
            keys.warn("name", "no pattern, so that nothing belongs to it; add a line such as name=pattern".to_owned());
        }
        let patterns = section.options.iter().filter_map(|entry| keys.pattern(&entry.key)).collect();
        read.push(Application { name: section.name.clone(), patterns });
    }
    read
}
