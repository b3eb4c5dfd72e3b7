//! The notification file: when the program notifies, and how.
//!
//! ```text
//! [SSH limit]
//! process_filter=ssh
//! in_threshold=50
//! interval=5
//! notification_command=mail -s "SSH over the limit" root
//! ```

use std::time::Duration;

use super::Diagnostics;
use super::keys::{Keys, Patterns, sections};
use crate::notify::{Interval, Rule};

const THRESHOLDS: [&str; 3] = ["in_threshold", "out_threshold", "notification_threshold"];
const KEYS: [&str; 9] = [
    "process_filter",
    "in_threshold",
    "out_threshold",
    "notification_threshold",
    "interval",
    "notification_command",
    "repeat",
    "recovery_command",
    "command_timeout",
];

/// The seconds that a command may run, unless the section says otherwise.
const COMMAND_TIMEOUT: i64 = 600;

/// Reads a notification file; `file` is its name in messages.
pub fn notifications(file: &str, text: &[u8], diagnostics: &mut Diagnostics) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut patterns = Patterns::default();
    for section in &sections(file, text, diagnostics) {
        let mut keys = Keys { file, section, patterns: &mut patterns, diagnostics };
        keys.warn_about_unknown(&KEYS, &[]);
        keys.required("process_filter", "firefox");
        let process_filter = keys.pattern("process_filter");
        let both = threshold(&mut keys, "notification_threshold");
        let in_threshold = threshold(&mut keys, "in_threshold").or(both);
        let out_threshold = threshold(&mut keys, "out_threshold").or(both);
        if THRESHOLDS.iter().all(|key| keys.find(key).is_none()) {
            keys.warn(
                "notification_threshold",
                "missing, so this section never notifies; add a threshold in kB/s".to_owned(),
            );
        }
        let interval = keys.integer("interval", i64::MIN..=i64::MAX, "5").unwrap_or(1);
        if interval < 0 {
            keys.warn("interval", format!("{interval} means the whole time since the start; for that, write 0"));
        }
        let repeat = keys.integer("repeat", 0..=i64::from(u32::MAX), "60").unwrap_or(0);
        let notification_command = keys.command("notification_command");
        let recovery_command = keys.command("recovery_command");
        let timeout = keys.integer("command_timeout", 0..=i64::from(u32::MAX), "60").unwrap_or(COMMAND_TIMEOUT);
        let Some(process_filter) = process_filter else { continue };
        rules.push(Rule {
            section: section.name.clone(),
            process_filter,
            // Zero switches a direction off, even if notification_threshold is set for both.
            in_threshold_kb_per_s: in_threshold.filter(|&kb| kb != 0),
            out_threshold_kb_per_s: out_threshold.filter(|&kb| kb != 0),
            interval: match u32::try_from(interval.max(0)) {
                Ok(0) => Interval::WholeRun,
                Ok(seconds) => Interval::Seconds(seconds),
                Err(_) => Interval::Seconds(u32::MAX),
            },
            notification_command,
            repeat: Duration::from_secs(repeat.unsigned_abs()),
            recovery_command,
            command_timeout: (timeout > 0).then(|| Duration::from_secs(timeout.unsigned_abs())),
        });
    }
    rules
}

/// A threshold in kB/s (1024 bytes per second), if the section has it.
fn threshold(keys: &mut Keys, key: &str) -> Option<i64> {
    keys.integer(key, i64::MIN..=i64::MAX, "50")
}
