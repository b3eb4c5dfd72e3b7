//! What the user is told about where the figures come from, and how to get better ones.

use std::collections::HashSet;

use anyhow::Error;
use nix::unistd::geteuid;

use crate::kernel::conntrack::probe::Tracking;

/// The commands that make the kernel track and count every connection, on a host that has nftables.
pub const ENABLE_COMMANDS: &str = "nft 'add table inet bwmon; \
    add chain inet bwmon track { type filter hook input priority 0; }; \
    add rule inet bwmon track ct state invalid counter' && sysctl -w net.netfilter.nf_conntrack_acct=1";

/// What is counted where conntrack does not count.
const PAYLOAD_ONLY: &str = "TCP payload per socket is counted, without UDP and without packet headers";
/// What is counted where conntrack does not count and nothing else is to be used.
const NOTHING: &str = "nothing is counted";

/// Said once where some processes' descriptors may not be read.
pub(super) const ONLY_OWN_PROCESSES: &str =
    "only your own processes are shown: whose the other sockets are is for root (sudo) to see";

/// Messages for the user, each topic once.
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

    /// The messages since the call before.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.waiting)
    }
}

/// What to say of a table that can be read; nothing if it counts. `required`: nothing else is to be used.
pub(super) fn on_tracking(tracking: Tracking, required: bool) -> Option<String> {
    let counted = if required { NOTHING } else { PAYLOAD_ONLY };
    match tracking {
        Tracking::Counts => None,
        // The first sentence is the original's.
        Tracking::WithoutCounters => Some(format!(
            "WARNING: No 'bytes' field in output (use 'sysctl -w net.netfilter.nf_conntrack_acct=1' to enable \
             accounting. Until then {counted}"
        )),
        Tracking::Off => Some(format!(
            "conntrack tracks no connections on this host, since no firewall rule needs it, so {counted}. For full \
             counting run: {ENABLE_COMMANDS}"
        )),
    }
}

/// What to say where the table cannot be read.
pub(super) fn on_refusal(error: &Error) -> String {
    if geteuid().is_root() {
        format!("{error:#}, so {PAYLOAD_ONLY}. For full counting run: {ENABLE_COMMANDS}")
    } else {
        format!(
            "conntrack is for root to read, so {PAYLOAD_ONLY}. For full counting run this as root (sudo), and where \
             connections are not tracked yet: {ENABLE_COMMANDS}"
        )
    }
}
