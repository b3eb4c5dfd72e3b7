//! The rights of the programs and of each of their threads: capabilities(7), no_new_privs, landlock(7) and seccomp(2).
//!
//! ```text
//! 1. Opening::begin    one thread: what the program needs to open is kept, and nothing can be gained any more
//! 2. open              BPF programs, sockets, ports, files; each thread that starts meanwhile keeps what its duty needs
//! 3. Opening::end      the loop keeps what it needs, and no thread can make the calls that none of them needs
//! 4. the loop          takes the `Working` of step 3: it cannot begin before
//! ```
//! Capabilities and Landlock belong to a thread, which its children inherit them from; so a thread calls `keep_for` first of all.
//! A step only ever takes away. Where this user has nothing to give up, or the kernel lacks a feature, that alone is missing.
//!
//! docs/privileges.md has the table of what is kept, with the reasons.

mod files;
mod system_calls;

use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::{Gid, Uid};
pub use rustix::thread::CapabilitySet;
use rustix::thread::{
    CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use files::Reach;

/// To read the descriptors, programs and namespaces of other users' processes (ptrace(2), PTRACE_MODE_READ), whose directories they
/// alone may list.
const READ_PROCESSES: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH);

/// What a monitor needs as long as it runs: also to enter network namespaces (setns(2)) and to load BPF programs, of which
/// CAP_BPF and CAP_PERFMON are parts; to follow the kernel's events; and to follow them in time.
pub(crate) const MONITOR: CapabilitySet =
    READ_PROCESSES.union(CapabilitySet::SYS_ADMIN).union(CapabilitySet::NET_ADMIN).union(CapabilitySet::SYS_NICE);

/// To listen on a port below 1024.
const PORTS: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// To run commands as other users, and to kill those that take too long.
const COMMANDS: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID).union(CapabilitySet::KILL);

/// To keep a history in a directory of another user: SQLite gives the files beside it the same owner.
const HISTORY: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::CHOWN);

/// What a program does, or may have to do later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// It monitors.
    pub monitor: bool,
    /// It may load BPF programs, or run conntrack(8): a source of counters may take the place of another.
    pub opens_sources: bool,
    /// It listens, perhaps below port 1024.
    pub ports: bool,
    /// It reads files that belong to others.
    pub files: bool,
    /// It runs commands of notifications.
    pub commands: bool,
    /// It opens a history.
    pub history: bool,
}

impl Needs {
    /// Those of a monitor; `opens_sources`: which may open other sources of counters.
    pub fn of_monitor(opens_sources: bool) -> Self {
        Self { monitor: true, opens_sources, ..Self::default() }
    }

    /// What a program with these needs also has to do before: to listen, and with `history` to open a history.
    pub fn to_open(self, history: bool) -> Self {
        Self { ports: true, history, ..self }
    }

    /// The same for a program that does not monitor.
    pub(crate) fn without_monitor(self) -> Self {
        Self { monitor: false, opens_sources: false, ..self }
    }

    /// The capabilities that it needs of those that there are.
    fn capabilities(self) -> CapabilitySet {
        let all = [
            (self.monitor, MONITOR),
            (self.ports, PORTS),
            (self.files, CapabilitySet::DAC_READ_SEARCH),
            (self.commands, COMMANDS),
            (self.history, HISTORY),
        ];
        all.iter().filter(|(needed, _)| *needed).fold(CapabilitySet::empty(), |sum, (_, set)| sum | *set)
    }
}

/// A program that opens what it needs.
#[derive(Debug)]
pub struct Opening {
    had: CapabilitySet,
}

/// A program that has given up what it no longer needs.
#[derive(Debug)]
pub struct Working(());

impl Opening {
    /// Keeps what the program `needs` to open, before its first thread starts. No program that it starts gains any right:
    /// set-user-id, file capabilities and root's own are without effect from here on.
    ///
    /// # Errors
    /// Where the kernel does not let go of a right.
    pub fn begin(needs: Needs) -> Result<Self> {
        let had = capabilities(None).context("cannot read the capabilities of this program")?.permitted;
        // Also those that a command could be given: conntrack(8) alone needs one.
        let bounding = if needs.opens_sources { CapabilitySet::NET_ADMIN } else { CapabilitySet::empty() };
        if had.contains(CapabilitySet::SETPCAP) {
            for number in 0..u64::BITS {
                let capability = CapabilitySet::from_bits_retain(1 << number);
                // EINVAL: the kernel has no more of them.
                if !bounding.contains(capability) && remove_capability_from_bounding_set(capability).is_err() {
                    break;
                }
            }
        }
        // Linux before 4.3 has no such set.
        let _ = clear_ambient_capability_set();
        set_no_new_privs(true).context("cannot set no_new_privs")?;
        keep(needs.capabilities()).context("cannot give up capabilities")?;
        Ok(Self { had })
    }

    /// Whether the program had rights of a monitor when it began.
    pub(crate) fn could_monitor(&self) -> bool {
        self.had.intersects(MONITOR)
    }

    /// Keeps what the loop `needs`. In all threads, refuses the system calls that nothing needs from now on.
    ///
    /// # Errors
    /// As for [`begin`](Self::begin).
    pub fn end(self, needs: Needs) -> Result<Working> {
        keep(needs.capabilities()).context("cannot give up capabilities")?;
        system_calls::refuse(needs);
        Ok(Working(()))
    }
}

/// Whether the calling thread has rights of a monitor: then to be root gives no more.
pub(crate) fn may_monitor() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.intersects(MONITOR))
}

/// What a thread does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Duty<'a> {
    /// Follows the kernel's events, and looks into processes and network namespaces.
    Watching,
    /// Reads command lines, on a host that may hide processes (`hidepid` in proc(5)).
    ReadingCommandLines,
    /// Reads the files of container engines.
    ReadingContainerFiles,
    /// Asks name servers.
    Resolving,
    /// Forwards what strangers send.
    Forwarding,
    /// Answers the requests of strangers, from the history if there is one.
    Serving(Option<&'a Path>),
    /// Writes the history in this file.
    Recording(&'a Path),
    /// Talks to a terminal, or writes to the standard streams.
    Showing,
    /// Starts commands, each in a thread that calls [`become_user`].
    RunningCommands,
}

/// Keeps the rights that the calling thread, and those that it starts, need for a duty. Call it as the thread begins.
pub(crate) fn keep_for(duty: Duty<'_>) {
    let kept = match duty {
        Duty::Watching => READ_PROCESSES | CapabilitySet::SYS_ADMIN,
        Duty::ReadingCommandLines => CapabilitySet::SYS_PTRACE,
        Duty::ReadingContainerFiles | Duty::Serving(Some(_)) => CapabilitySet::DAC_READ_SEARCH,
        Duty::Recording(_) => HISTORY,
        Duty::RunningCommands => CapabilitySet::SETUID | CapabilitySet::SETGID,
        Duty::Resolving | Duty::Forwarding | Duty::Serving(None) | Duty::Showing => CapabilitySet::empty(),
    };
    // The main thread has given up some already, so the kernel lets this one do so too.
    let _ = keep(kept);
    match duty {
        Duty::Resolving | Duty::Forwarding => files::restrict(&Reach::Names),
        Duty::Serving(history) => files::restrict(&Reach::Times(history)),
        Duty::Recording(history) => files::restrict(&Reach::History(history)),
        // A thread with a Landlock domain may look into no process outside of it (security/landlock/task.c).
        Duty::Watching | Duty::ReadingCommandLines => {}
        // Commands are programs of the user, who may do what he likes with them.
        Duty::RunningCommands => {}
        Duty::ReadingContainerFiles | Duty::Showing => {}
    }
}

/// Makes the calling thread one of `user`, without any capability. What it starts, and it alone, runs as that user. `None` keeps
/// the user as he is.
///
/// # Errors
/// EPERM where this thread may not become that user.
pub(crate) fn become_user(user: Option<(Uid, Gid, &[Gid])>) -> io::Result<()> {
    if let Some((uid, gid, groups)) = user {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid.as_raw()), rustix::fs::Gid::from_raw(gid.as_raw()));
        let groups: Vec<_> = groups.iter().map(|group| rustix::fs::Gid::from_raw(group.as_raw())).collect();
        // glibc's functions would change all threads; these system calls change the one that calls them.
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
    }
    keep(CapabilitySet::empty())
}

/// Gives up all other capabilities of the calling thread.
fn keep(wanted: CapabilitySet) -> io::Result<()> {
    let now = capabilities(None)?;
    let kept = now.permitted & wanted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    if sets != now {
        set_capabilities(None, sets)?;
    }
    Ok(())
}
