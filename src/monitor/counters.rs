//! The joint between what counts bytes in the kernel and the books, and the choice between the sources.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use super::advice::{self, Notes};
use super::conntrack::Conntrack;
use super::sockets::Sockets;
use crate::attribution::Attribution;
use crate::attribution::process_cache::KnownProcess;
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::flow::{Flow, Tuple};

/// Where the counters come from: the values of `--source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum CountersFrom {
    /// Conntrack where it counts, otherwise the sockets.
    #[default]
    Auto,
    /// Conntrack: all of TCP and UDP, packet headers included.
    Conntrack,
    /// The sockets themselves: TCP payload.
    Sockets,
}

/// Reads, once a tick, how many bytes every flow has carried.
pub(super) trait CounterSource: Debug {
    /// The name that `--source` has for it.
    fn name(&self) -> &'static str;

    /// Enters all that the kernel has told or counted since the call before. Call it once a tick.
    ///
    /// # Errors
    /// When the counters can no longer be read at all.
    fn read(&mut self, into: &mut dyn FlowSink) -> Result<()>;

    /// The messages for the user since the call before, one line each.
    fn notes(&mut self) -> Vec<String>;

    /// Looks for network namespaces that have appeared or ended; the monitor has just found that there may be some.
    fn scan_namespaces(&mut self) {}

    /// The number of ticks in which the kernel's events were lost.
    fn ticks_with_lost_events(&self) -> u64 {
        0
    }

    /// The kernel's notes about TCP connections, if this source has it make any.
    fn tcp_owners(&self) -> Option<Arc<TcpOwners>> {
        None
    }
}

/// What a source enters its flows into.
pub(super) trait FlowSink {
    /// A process has started a program, and may end before a look-up leads to it.
    fn program_started(&mut self, process: KnownProcess);

    /// A flow began.
    fn opened(&mut self, flow: &Flow);

    /// The owners at the sources of a flow's original and reply tuple were found when it began, as far as given.
    fn attributed(&mut self, flow: &Flow, found: [Option<Attribution>; 2]);

    /// A flow has these counters.
    fn row(&mut self, flow: &Flow);

    /// A flow ended with these counters.
    fn ended(&mut self, flow: &Flow);

    /// The original tuples of all flows that are known and not over; `None` if there are more than `most`, or if a tuple
    /// alone does not identify a flow.
    fn tuples(&self, most: usize) -> Option<Vec<Tuple>>;
}

/// The first source that works on this host of those that `wanted` allows. Notes say what it leaves out.
pub(super) fn open(wanted: CountersFrom, notes: &mut Notes) -> Result<Box<dyn CounterSource>> {
    if wanted == CountersFrom::Sockets {
        return Ok(Box::new(Sockets::open()?));
    }
    let required = wanted == CountersFrom::Conntrack;
    match Conntrack::open() {
        Ok((conntrack, tracking)) => {
            notes.extend(advice::on_tracking(tracking, required));
            if required || conntrack.counts() {
                return Ok(Box::new(conntrack.watch()));
            }
        }
        Err(error) if required => return Err(error),
        Err(error) => notes.extend([advice::on_refusal(&error)]),
    }
    Ok(Box::new(Sockets::open()?))
}

/// The conntrack table in a file below `proc_root`, as text.
pub(super) fn from_file(proc_root: &Path) -> Box<dyn CounterSource> {
    Box::new(Conntrack::from_file(proc_root.join("net/nf_conntrack")))
}
