//! What bytes are credited to, or the reason why they are credited to nothing.

use std::borrow::Cow;

/// What bytes are credited to.
///
/// Two subjects may have the same [label](Subject::label): two containers that run one command line, for example. An
/// output that shows nothing but labels adds them up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// The processes that have all of this in common.
    Processes {
        /// The arguments with a blank behind each; `[comm]` for a process without a command line (a kernel thread).
        /// Bytes, since a command line need not be UTF-8.
        command_line: Box<[u8]>,
        /// The effective user id; `None` where it could not be read.
        uid: Option<u32>,
        /// The path of the cgroup from the root of its hierarchy, as cgroups(7) has it in /proc/PID/cgroup; `None` where
        /// it could not be read.
        cgroup: Option<Box<[u8]>>,
    },
    /// A pipe, an application or a program, by its name.
    Named(Box<[u8]>),
    /// No process, for this reason.
    Unowned(Reason),
}

impl Subject {
    /// The name under which text output shows it: a command line, a name, or a reason in parentheses.
    pub fn label(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Processes { command_line, .. } => Cow::Borrowed(command_line),
            Self::Named(name) => Cow::Borrowed(name),
            Self::Unowned(reason) => Cow::Owned(format!("({})", reason.text()).into_bytes()),
        }
    }
}

/// Why bytes have no owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Neither end of the connection is on this host.
    Forwarded,
    /// No socket has the tuple any more: the process ended before it could be found.
    Gone,
    /// The kernel has a socket, but no process holds it.
    NoProcess,
    /// The socket belongs to a process of another user, whose descriptors this user may not read.
    NotPermitted,
}

impl Reason {
    /// The reason in a few words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Forwarded => "no local socket: forwarded",
            Self::Gone => "process gone before the look-up",
            Self::NoProcess => "socket without process",
            Self::NotPermitted => "no permission to see the process",
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
