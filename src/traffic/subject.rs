//! Subjects, to which bytes are credited; and the reasons why bytes have no owner.

use std::borrow::Cow;

use crate::printable::printable;
use crate::workload::cgroup::Cgroup;

/// The columns of a name that is recorded.
const RECORDED_WIDTH: usize = 512;

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
        /// The cgroup; `None` if it could not be read.
        cgroup: Option<Cgroup>,
        /// The path of the program; `None` if it has none or it could not be read.
        executable: Option<Box<[u8]>>,
        /// Whether they have no command line: a kernel thread, or a process that does not let it be read.
        nameless: bool,
    },
    /// More processes of a user than are told apart.
    Others {
        /// The user; `None` where that is not known.
        user: Option<u32>,
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
            Self::Others { user: Some(user) } => format!("(other processes of user {user})").into_bytes().into(),
            Self::Others { user: None } => Cow::Borrowed(b"(other processes)"),
            Self::Unowned(reason) => Cow::Owned(format!("({})", reason.text()).into_bytes()),
        }
    }

    /// The [label](Self::label) as the name of something: a process that calls itself like one of our own names, or like a
    /// kernel thread, has a backslash before it. Kernel threads are root's, and an ordinary user's process can be without
    /// command line as they are.
    pub fn name(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Processes { command_line, nameless: false, .. } if is_name_of_ours(command_line.trim_ascii()) => {
                Cow::Owned([b"\\", &**command_line].concat())
            }
            Self::Processes { command_line, nameless: true, uid, .. } if *uid != Some(0) => {
                Cow::Owned([b"\\", &**command_line].concat())
            }
            _ => self.label(),
        }
    }

    /// The [name](Self::name) by which files and other programs know it: safe to print, and of at most 512 columns.
    pub fn recorded_name(&self) -> String {
        printable(self.name().trim_ascii_end(), RECORDED_WIDTH)
    }

    /// The effective user id of its processes; `None` if it has none or it could not be read.
    pub fn uid(&self) -> Option<u32> {
        match self {
            Self::Processes { uid, .. } | Self::Others { user: uid } => *uid,
            Self::Named(_) | Self::Unowned(_) => None,
        }
    }
}

/// Whether text output would show something else by this name: bytes without an owner, other processes, a process without
/// command line, a pipe.
fn is_name_of_ours(name: &[u8]) -> bool {
    let is_pipe = name.strip_prefix(b"pipe-").is_some_and(|rest| {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        digits > 0 && rest.get(digits) == Some(&b':')
    });
    let is_in_parentheses = name.strip_prefix(b"(").and_then(|rest| rest.strip_suffix(b")")).is_some_and(|text| {
        text.starts_with(b"other processes") || Reason::ALL.iter().any(|reason| reason.text().as_bytes() == text)
    });
    is_pipe || is_in_parentheses || (name.starts_with(b"[") && name.ends_with(b"]"))
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
    /// All reasons.
    pub const ALL: [Self; 7] = [
        Self::Forwarded,
        Self::Gone,
        Self::NoProcess,
        Self::NotPermitted,
        Self::TooMany,
        Self::Ambiguous,
        Self::NotSearched,
    ];

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

    /// The reason in one word, for machines.
    pub fn key(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Gone => "process_gone",
            Self::NoProcess => "no_process",
            Self::NotPermitted => "not_permitted",
            Self::TooMany => "too_many",
            Self::Ambiguous => "ambiguous",
            Self::NotSearched => "not_searched",
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
            cgroup: Cgroup::parse(&[b"0::", cgroup].concat(), b""),
            executable: None,
            nameless: false,
        };
        let (one, other) = (process(b"/docker/a"), process(b"/docker/b"));
        assert_ne!(one, other);
        assert_eq!(one.label(), other.label());
    }

    #[test]
    fn a_process_cannot_be_named_like_what_is_ours() {
        let name_of = |command_line: &str, nameless, uid| {
            let command_line = command_line.as_bytes().into();
            let uid = Some(uid);
            let subject = Subject::Processes { command_line, uid, cgroup: None, executable: None, nameless };
            String::from_utf8(subject.name().into_owned()).unwrap()
        };
        let name = |command_line: &str, nameless| name_of(command_line, nameless, 1000);
        for ours in ["(no local socket: forwarded)", "(other processes of user 0) ", "pipe-80:a:1 ", "[kworker/0:1]"] {
            assert_eq!(name(ours, false), format!("\\{ours}"));
        }
        for theirs in ["(sd-pam)", "pipe-line ", "curl http://[::1]", "[ -e x ", ""] {
            assert_eq!(name(theirs, false), theirs);
        }
        assert_eq!(name_of("[kworker/0:1]", true, 0), "[kworker/0:1]");
        // An ordinary user's process can clear its command line (PR_SET_MM), and choose its comm (PR_SET_NAME).
        assert_eq!(name("[kworker/0:1]", true), "\\[kworker/0:1]");
    }

    #[test]
    fn a_reason_is_shown_in_parentheses() {
        assert_eq!(*Subject::Unowned(Reason::NoProcess).label(), *b"(socket without process)");
    }
}
