//! Messages to the user: where the figures come from, and how to get better ones.

use std::collections::HashSet;

use anyhow::Error;
use nix::unistd::geteuid;

use crate::kernel::conntrack::probe::{Probe, Tracking};
use crate::printable::printable;
use crate::privileges::may_monitor;

/// The commands that make the kernel track and count every connection, on a host that has nftables.
pub const ENABLE_COMMANDS: &str = "nft 'add table inet bwmon; \
    add chain inet bwmon track { type filter hook input priority 0; }; \
    add rule inet bwmon track ct state invalid counter' && sysctl -w net.netfilter.nf_conntrack_acct=1";

/// The rights of a monitor, for setcap(8).
pub const RIGHTS: &str = "cap_net_admin,cap_sys_ptrace,cap_dac_read_search,cap_sys_admin,cap_sys_nice=ep";

/// The consequence if conntrack does not count.
const PAYLOAD_ONLY: &str = "TCP payload per socket is counted, without UDP and without packet headers";
/// The consequence if conntrack does not count and the user allows no other source.
const NOTHING: &str = "nothing is counted";

/// The message when conntrack begins to count.
pub(super) const COUNTS_NOW: &str =
    "conntrack counts now: from here on all of TCP and UDP is counted, packet headers included";
/// The message when it stops.
pub(super) const STOPPED_COUNTING: &str =
    "conntrack no longer counts on this host: from here on TCP payload per socket is counted, without UDP and headers";

/// The message to a user who may not read the descriptors of some processes.
pub(super) const ONLY_OWN_PROCESSES: &str =
    "only your own processes are shown: only root (sudo) can see which processes have the other sockets";

/// The message where conntrack has flows of protocols other than TCP, UDP and SCTP.
pub(super) const CONNTRACK_HAS_NO_SOCKET: &str = "conntrack does not tell which socket sends ICMP and the like: that traffic has no owner, except with --source=packets";

/// The message where processes cannot be read for want of descriptors or memory.
pub(super) const OUT_OF_DESCRIPTORS: &str = "processes cannot be read, since this program or the host is out of file descriptors or memory: owners may be \
     missing (see ulimit -n)";

/// The message when the thread that follows the kernel's events was replaced, with the reason.
pub(super) fn on_restart(why: String) -> String {
    format!("{why}: owners of connections that lasted milliseconds may be missing")
}

/// The message about a process whose name cannot be read.
pub(super) fn on_given_up(pid: u32) -> String {
    format!("process {pid} does not let its command line be read: it is shown by its name in brackets")
}

/// The message where there are more network namespaces than are entered.
pub(super) fn namespaces_left_out(number: usize) -> String {
    format!(
        "{number} network namespaces are not looked into, since there are too many: their sockets may have no owner"
    )
}

/// Messages for the user, at most one on each topic.
#[derive(Debug, Default)]
pub(super) struct Notes {
    waiting: Vec<String>,
    reported: HashSet<&'static str>,
}

impl Notes {
    /// Adds the message, unless there was one on this topic before.
    pub fn once(&mut self, topic: &'static str, text: impl FnOnce() -> String) {
        if self.reported.insert(topic) {
            self.waiting.push(text());
        }
    }

    pub fn extend(&mut self, notes: impl IntoIterator<Item = String>) {
        self.waiting.extend(notes);
    }

    /// The messages since the last call.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.waiting)
    }
}

/// The message about a table that can be read; `None` if it counts. `required`: nothing else is to be used.
pub(super) fn on_tracking(probe: &Probe, required: bool) -> Option<String> {
    let counted = if required { NOTHING } else { PAYLOAD_ONLY };
    match (probe.ipv4, probe.ipv6) {
        (Tracking::Counts, Tracking::Counts) => None,
        (Tracking::Counts, _) => Some(one_family("IPv4", "IPv6", required)),
        (_, Tracking::Counts) => Some(one_family("IPv6", "IPv4", required)),
        // The first sentence is the original's.
        (Tracking::WithoutCounters, _) | (_, Tracking::WithoutCounters) => Some(format!(
            "WARNING: No 'bytes' field in output (use 'sysctl -w net.netfilter.nf_conntrack_acct=1' to enable \
             accounting. Until then {counted}"
        )),
        (Tracking::Off, Tracking::Off) => Some(format!(
            "conntrack tracks no connections on this host, since no firewall rule needs it, so {counted}. For full \
             counting {}",
            remedy(required)
        )),
    }
}

/// What to run for full counting. Root counts packets, and needs conntrack only where the kernel refuses that.
fn remedy(required: bool) -> String {
    if required || geteuid().is_root() || may_monitor() {
        format!("run: {ENABLE_COMMANDS}")
    } else {
        let program = std::env::current_exe().map_or("/path/to/this".into(), |path| path.display().to_string());
        format!(
            "run this as root (sudo), or give it the rights: sudo setcap {RIGHTS} {}",
            printable(program.as_bytes(), 200)
        )
    }
}

fn one_family(counted: &str, missing: &str, required: bool) -> String {
    format!(
        "conntrack counts {counted} only, since no firewall rule needs {missing} connections: those are missing. For full \
         counting {}",
        remedy(required)
    )
}

/// The message where conntrack counts otherwise than before.
pub(super) fn on_change(probe: &Probe, required: bool) -> Option<String> {
    on_tracking(probe, required).or_else(|| Some(COUNTS_NOW.to_owned()))
}

/// The message about a table that cannot be read.
pub(super) fn on_refusal(error: &Error) -> String {
    let why = if geteuid().is_root() { format!("{error:#}") } else { "only root can count packets".to_owned() };
    format!("{why}, so {PAYLOAD_ONLY}. For full counting {}", remedy(false))
}
