//! Subjects, to which bytes are credited; and the reasons why bytes have no owner.

use std::borrow::Cow;

/// Bytes are credited to it: processes that have much in common, or a name.
///
/// Two subjects may have the same [label](Subject::label): two containers that run one command line, for example. An
/// output that shows only labels adds them up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// The processes that have all of this in common.
    Processes {
        /// The arguments with a blank after each; `[comm]` for a process without a command line (a kernel thread).
        /// Bytes, since a command line need not be UTF-8.
        command_line: Box<[u8]>,
        /// The effective user id; `None` if it could not be read.
        uid: Option<u32>,
        /// The path of the cgroup from the root of its hierarchy, as /proc/PID/cgroup has it (cgroups(7)); `None` if it
        /// could not be read.
        cgroup: Option<Box<[u8]>>,
    },
    /// A pipe, an application or a program, by its name.
    Named(Box<[u8]>),
    /// Bytes without an owner, for this reason.
    Unowned(Reason),
}

impl Subject {
    /// The name that text output shows: a command line, a name, or a reason in parentheses.
    pub fn label(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Processes { command_line, .. } => Cow::Borrowed(command_line),
            Self::Named(name) => Cow::Borrowed(name),
            Self::Unowned(reason) => Cow::Owned(format!("({})", reason.text()).into_bytes()),
        }
    }

    /// The effective user id of its processes; `None` if it has none or it could not be read.
    pub fn uid(&self) -> Option<u32> {
        match self {
            Self::Processes { uid, .. } => *uid,
            Self::Named(_) | Self::Unowned(_) => None,
        }
    }
}

/// Why bytes have no owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Neither end of the connection is on this host.
    Forwarded,
    /// The tuple no longer has a socket: the process ended before the lookup.
    Gone,
    /// The kernel has a socket, but no process holds it.
    NoProcess,
    /// The process belongs to another user, and this user may not read its descriptors.
    NotPermitted,
    /// More sockets moved bytes within a tick than could be counted apart.
    TooMany,
    /// Several network namespaces have such a socket, and nothing tells which one it is.
    Ambiguous,
    /// The processes have more descriptors than a tick can search; later ones go on.
    NotSearched,
}

impl Reason {
    /// The reason in a few words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Forwarded => "no local socket: forwarded",
            Self::Gone => "process gone before the lookup",
            Self::NoProcess => "socket without process",
            Self::NotPermitted => "no permission to see the process",
            Self::TooMany => "too many sockets at once",
            Self::Ambiguous => "equal addresses in several network namespaces",
            Self::NotSearched => "not looked up yet: too many descriptors",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_that_differ_in_their_cgroup_share_a_label() {
        let process = |cgroup: &[u8]| Subject::Processes {
            command_line: Box::from(&b"nginx "[..]),
            uid: Some(0),
            cgroup: Some(Box::from(cgroup)),
        };
        let (one, other) = (process(b"/docker/a"), process(b"/docker/b"));
        assert_ne!(one, other);
        assert_eq!(one.label(), other.label());
    }

    #[test]
    fn a_reason_is_shown_in_parentheses() {
        assert_eq!(*Subject::Unowned(Reason::NoProcess).label(), *b"(socket without process)");
    }
}
