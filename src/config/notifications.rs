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
use crate::calendar::{Cycle, Period};
use crate::notify::{Account, Interval, Quota, Rule};
use crate::python2::ini::quoted;

const THRESHOLDS: [&str; 3] = ["in_threshold", "out_threshold", "notification_threshold"];
pub(super) const KEYS: [&str; 14] = [
    "process_filter",
    "in_threshold",
    "out_threshold",
    "notification_threshold",
    "interval",
    "notification_command",
    "repeat",
    "recovery_command",
    "command_timeout",
    "notification_user",
    "quota",
    "quota_period",
    "quota_starts",
    "quota_warn",
];

/// The seconds that a command may run, unless the section says otherwise.
const COMMAND_TIMEOUT: i64 = 600;

/// The percentage of a quota at which the user is warned, unless the section says otherwise.
const QUOTA_WARN: i64 = 80;

/// Reads a notification file; `file` is its name in messages.
pub fn notifications(file: &str, text: &[u8], diagnostics: &mut Diagnostics) -> Vec<Rule> {
    notifications_with(true, file, text, diagnostics)
}

/// Does the same for a program that keeps a history, without which there are no quotas, or for one that does not.
pub(super) fn notifications_with(
    has_history: bool,
    file: &str,
    text: &[u8],
    diagnostics: &mut Diagnostics,
) -> Vec<Rule> {
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
        if THRESHOLDS.iter().chain(&["quota"]).all(|key| keys.find(key).is_none()) {
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
        let user = user(&mut keys);
        let quota = quota(&mut keys);
        if quota.is_some() && !has_history {
            keys.warn("quota", "without --history, nothing adds the bytes up, so nobody is told of it".to_owned());
        }
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
            quota,
            notification_command,
            repeat: Duration::from_secs(repeat.unsigned_abs()),
            recovery_command,
            user,
            command_timeout: (timeout > 0).then(|| Duration::from_secs(timeout.unsigned_abs())),
        });
    }
    rules
}

/// The user whose the commands of a section are, if it names one.
fn user(keys: &mut Keys) -> Option<Account> {
    let text = keys.text("notification_user")?;
    let account = match Account::named(text) {
        Ok(Some(account)) => Some(account),
        Ok(None) => {
            keys.error("notification_user", format!("{} is no user of this host", quoted(text)));
            None
        }
        Err(error) => {
            keys.error("notification_user", format!("{} cannot be looked up: {error}", quoted(text)));
            None
        }
    }?;
    if !account.can_be_used() {
        let message = format!("only root can run commands as {}; without this key, they run as you", quoted(text));
        keys.error("notification_user", message);
    }
    Some(account)
}

/// A threshold in kB/s (1024 bytes per second), if the section has it.
fn threshold(keys: &mut Keys, key: &str) -> Option<i64> {
    keys.integer(key, i64::MIN..=i64::MAX, "50")
}

/// The quota of a section, if it has one.
fn quota(keys: &mut Keys) -> Option<Quota> {
    let bytes = keys.bytes("quota", "50 GB");
    let period = match keys.text("quota_period") {
        None | Some("month") => Period::Month,
        Some("week") => Period::Week,
        Some("day") => Period::Day,
        Some(text) => {
            keys.error("quota_period", format!("{} is not day, week or month", quoted(text)));
            Period::Month
        }
    };
    let first_day = match period {
        Period::Month => keys.integer("quota_starts", 1..=28, "15"),
        Period::Week => keys.integer("quota_starts", 1..=7, "1 (Monday)"),
        _ => {
            if keys.find("quota_starts").is_some() {
                keys.warn("quota_starts", "has no effect: a day begins at midnight".to_owned());
            }
            None
        }
    };
    let warn_percent = keys.integer("quota_warn", 0..=99, "80").unwrap_or(QUOTA_WARN);
    if keys.find("quota").is_none() {
        for key in ["quota_period", "quota_starts", "quota_warn"] {
            if keys.find(key).is_some_and(|option| !option.inherited) {
                keys.warn(key, "has no effect without quota; add a line such as quota=50 GB".to_owned());
            }
        }
    }
    Some(Quota {
        bytes: bytes.filter(|&bytes| bytes > 0)?,
        cycle: Cycle { period, first_day: first_day.and_then(|day| i8::try_from(day).ok()).unwrap_or(1) },
        warn_percent: u8::try_from(warn_percent).ok().filter(|&percent| percent > 0),
    })
}
