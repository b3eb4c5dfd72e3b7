//! The interface between the sources of counters and the ledger, and the choice of a source.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use super::advice::{self, Notes};
use super::conntrack::Conntrack;
use super::packets::Packets;
use super::sockets::Sockets;
use crate::attribution::Attribution;
use crate::attribution::process_cache::KnownProcess;
use crate::kernel::bpf::packet_counters::{ClosedSocket, RemoteEndBytes, SocketBytes};
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::flow::{Counters, Flow, Tuple};
use crate::kernel::process_events::ProcessEvent;

/// Where the counters come from: the values of `--source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum CountersFrom {
    /// The first of the following that works here.
    #[default]
    Auto,
    /// Every packet of every socket: all IP traffic, packet headers included.
    Packets,
    /// Conntrack: all of TCP and UDP, packet headers included.
    Conntrack,
    /// The sockets themselves: TCP payload.
    Sockets,
}

/// Reads, once a tick, how many bytes every flow has carried.
pub(super) trait CounterSource: Debug {
    /// Its name, a value of `--source`.
    fn name(&self) -> &'static str;

    /// Enters all that the kernel has reported and counted since the last call. Call it once a tick.
    ///
    /// # Errors
    /// When the counters can no longer be read at all.
    fn read(&mut self, into: &mut dyn FlowSink) -> Result<()>;

    /// The messages for the user since the last call, one line each.
    fn notes(&mut self) -> Vec<String>;

    /// Looks for network namespaces that have appeared or ended. The monitor calls this when there may be some.
    fn scan_namespaces(&mut self) {}

    /// Whether it still counts, as far as that can change: asked every few ticks.
    fn still_counts(&mut self) -> bool {
        true
    }

    /// Whether it is used only where no other one counts.
    fn is_last_resort(&self) -> bool {
        false
    }

    /// Whether it counts as long as the program runs, and opens nothing more.
    fn stays(&self) -> bool {
        false
    }

    /// The number of ticks in which the kernel's events were lost.
    fn ticks_with_lost_events(&self) -> u64 {
        0
    }

    /// The kernel's records of the owners of TCP connections, if this source makes it record them.
    fn tcp_owners(&self) -> Option<Arc<TcpOwners>> {
        None
    }
}

/// Takes the flows that a source reads.
pub(super) trait FlowSink {
    /// A process has started a program, and may have ended by the time a lookup leads to it.
    fn program_started(&mut self, process: KnownProcess, at: u64);

    /// A process has started a program or made a child, and may end before it is read.
    fn process_event(&mut self, event: ProcessEvent);

    /// Process events are missing.
    fn lost_process_events(&mut self);

    /// A flow began.
    fn opened(&mut self, flow: &Flow);

    /// These owners were found when a flow began: at the source of its original tuple, and at that of its reply tuple.
    fn attributed(&mut self, flow: &Flow, found: [Option<Attribution>; 2]);

    /// A flow has these counters.
    fn row(&mut self, flow: &Flow);

    /// The rows of this tick are not the whole table: the next tick has those that follow.
    fn table_continues(&mut self);

    /// A flow ended with these counters.
    fn ended(&mut self, flow: &Flow);

    /// A socket is older than the monitor: a flow with its cookie as id, its inode, and what it carried, if that is known.
    fn existing_socket(&mut self, flow: &Flow);

    /// A process has closed a socket, which moves no more bytes but those that come in this tick, unless it lingers.
    fn closed(&mut self, socket: ClosedSocket);

    /// A socket has moved bytes.
    fn socket(&mut self, socket: &SocketBytes);

    /// A part of what a socket has moved in this tick was exchanged with this remote end.
    fn remote_end(&mut self, end: &RemoteEndBytes);

    /// Bytes were counted that no socket can be told of.
    fn without_owner(&mut self, bytes: Counters);

    /// The original tuples of all flows that are known and not over; `None` if there are more than `most`, or if a tuple
    /// alone does not identify a flow.
    fn tuples(&self, most: usize) -> Option<Vec<Tuple>>;
}

/// The first source that works on this host, of those that `wanted` allows; with `remotes`, it counts the bytes of each remote end as
/// far as it can. Adds notes about what it does not count.
pub(super) fn open(wanted: CountersFrom, remotes: bool, notes: &mut Notes) -> Result<Box<dyn CounterSource>> {
    match wanted {
        CountersFrom::Sockets => return Ok(Box::new(Sockets::open()?)),
        CountersFrom::Packets => return Ok(Box::new(Packets::open(remotes)?)),
        CountersFrom::Auto => {
            if let Ok(packets) = Packets::open(remotes) {
                return Ok(Box::new(packets));
            }
        }
        CountersFrom::Conntrack => {}
    }
    let required = wanted == CountersFrom::Conntrack;
    match Conntrack::open(required) {
        Ok(conntrack) => {
            notes.extend(advice::on_tracking(conntrack.probe(), required));
            if required || conntrack.probe().counts() {
                return Ok(Box::new(conntrack.watch()));
            }
        }
        Err(error) if required => return Err(error),
        Err(error) => notes.extend([advice::on_refusal(&error)]),
    }
    Ok(Box::new(Sockets::open()?))
}

/// The source to go on with, if another one than the `current` is better by now.
pub(super) fn reopen(
    wanted: CountersFrom,
    current: &mut dyn CounterSource,
    notes: &mut Notes,
) -> Option<Box<dyn CounterSource>> {
    if !current.still_counts() {
        notes.extend([advice::STOPPED_COUNTING.to_owned()]);
        return Some(Box::new(Sockets::open().ok()?));
    }
    if wanted == CountersFrom::Auto && current.is_last_resort() {
        let conntrack = Conntrack::open(false).ok().filter(|conntrack| conntrack.probe().counts())?;
        notes.extend([advice::COUNTS_NOW.to_owned()]);
        return Some(Box::new(conntrack.watch()));
    }
    None
}

/// The conntrack table in a file below `proc_root`, as text.
pub(super) fn from_file(proc_root: &Path) -> Box<dyn CounterSource> {
    Box::new(Conntrack::from_file(proc_root.join("net/nf_conntrack")))
}
