//! The properties of a subject by which it is grouped, and which an application's patterns match.
//!
//! ```text
//! /usr/bin/python3 sync.py           →   python3
//! 0::/system.slice/nginx.service     →   nginx.service
//! ```
//! A further property is another function from a [`Subject`] to a name.

use std::borrow::Cow;

use super::GroupBy;
use crate::python2::shlex;
use crate::traffic::subject::Subject;
use crate::workload::names::Names;

/// A property of a subject; `None` if it has none.
pub(crate) fn property<'a>(by: GroupBy, subject: &'a Subject, names: &mut Names) -> Option<Cow<'a, [u8]>> {
    let Subject::Processes { uid, cgroup, .. } = subject else {
        return match by {
            GroupBy::Command => Some(subject.label()),
            GroupBy::User => subject.uid().map(|uid| names.user(uid).into_bytes().into()),
            GroupBy::Program | GroupBy::Unit | GroupBy::Container => None,
        };
    };
    let cgroup = cgroup.as_ref();
    match by {
        GroupBy::Command => Some(subject.label()),
        GroupBy::Program => Some(program(&subject.name()).into()),
        GroupBy::User => uid.map(|uid| names.user(uid).into_bytes().into()),
        GroupBy::Unit => Some(cgroup?.workload().unit_label()?.into_owned().into_bytes().into()),
        GroupBy::Container => names.container(cgroup?).map(Cow::Owned),
    }
}

/// The program that a command line names: its first word, as a shell splits words, without the directories.
///
/// If a quote in that word is not closed, blanks alone separate the words. If there is no word, or its last character
/// is a slash, the name is the whole command line: a process can overwrite its command line with anything.
pub fn program(command_line: &[u8]) -> Vec<u8> {
    let word = match shlex::first_word(command_line) {
        Ok(word) => word,
        Err(_) => command_line.split(u8::is_ascii_whitespace).find(|word| !word.is_empty()).map(<[u8]>::to_vec),
    };
    let word = word.unwrap_or_default();
    let base = word.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    if base.is_empty() { command_line.to_vec() } else { base.to_vec() }
}
