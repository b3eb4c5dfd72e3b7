//! Counters of every packet, per socket, from BPF programs of ours: TCP, UDP, ICMP and all other IP traffic of sockets, in
//! all network namespaces, whether anything was set up on this host or not.
//!
//! What connections carried before the start comes from the conntrack table where that counts, otherwise from tcp_info.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::advice::{self, Notes};
use super::counters::{CounterSource, FlowSink};
use crate::attribution::Identity;
use crate::attribution::process_cache::KnownProcess;
use crate::attribution::watcher::{Observation, Watcher};
use crate::kernel::bpf::packet_counters::PacketCounters;
use crate::kernel::bpf::program_starts::ProgramStarts;
use crate::kernel::conntrack::Table;
use crate::kernel::flow::{Counters, Flow, Protocol, Tuple};
use crate::kernel::namespace::Namespaces;
use crate::kernel::process::Processes;
use crate::kernel::process_events::ProcessEvents;

/// The protocols whose sockets sock_diag lists: TCP, UDP, IPPROTO_UDPLITE, IPPROTO_RAW, IPPROTO_SCTP.
const PROTOCOLS: [Protocol; 5] =
    [Protocol::Tcp, Protocol::Udp, Protocol::Other(136), Protocol::Other(255), Protocol::Other(132)];

/// The most process events that one tick reads, 1 µs each.
const EVENTS_PER_TICK: usize = 65_536;

/// How long the first tick lists what there is. What it does not get to counts from its next bytes on.
const LONGEST_START: Duration = Duration::from_secs(3);

/// The packet counters, what programs are called as they start, and the events of processes, which are read at the tick.
#[derive(Debug)]
pub(super) struct Packets {
    counters: PacketCounters,
    programs: Programs,
    process_events: Option<ProcessEvents>,
    /// Whether the sockets that are older than the monitor have been entered.
    begun: bool,
    ticks_with_lost_events: u64,
    notes: Notes,
}

/// Who tells what programs are called as they start.
#[derive(Debug)]
enum Programs {
    /// The kernel notes it.
    Noted(ProgramStarts),
    /// A thread reads it in /proc, unless they end too soon.
    Read(Watcher),
    Unknown,
}

impl Packets {
    /// Loads and attaches the programs, with `remotes` those that also count the remote ends of sockets without a peer.
    ///
    /// # Errors
    /// Where the kernel refuses them.
    pub fn open(remotes: bool) -> Result<Self> {
        let mut notes = Notes::default();
        let counters = PacketCounters::attach(remotes)
            .or_else(|error| {
                if remotes {
                    notes.once("remotes", || {
                        format!("this kernel refuses to count the remote ends of sockets without a peer ({error}): they are not told apart")
                    });
                }
                PacketCounters::attach(false)
            })
            .context("cannot count packets per socket (bpf(2): needs root on the host and Linux 5.10)")?;
        if !counters.missing().is_empty() {
            let missing = counters.missing().join(", ");
            notes.once("missing", || {
                format!("this kernel refuses a part of the packet counters ({missing}): owners of short connections may be missing")
            });
        }
        if let Some(error) = counters.refused_time_wait() {
            notes.once("time wait", || {
                format!(
                    "this kernel lets no program count what it answers for closed connections ({error}): some 100 bytes of a connection that is closed here first are missing"
                )
            });
        }
        let programs = match ProgramStarts::attach() {
            Ok(starts) => Programs::Noted(starts),
            Err(_) => Watcher::of_programs().map_or(Programs::Unknown, Programs::Read),
        };
        let process_events = ProcessEvents::of_all().ok();
        Ok(Self { counters, programs, process_events, begun: false, ticks_with_lost_events: 0, notes })
    }
}

impl Packets {
    /// Enters what processes have done since the last tick.
    fn read_programs(&mut self, into: &mut dyn FlowSink) -> Result<()> {
        match &mut self.programs {
            Programs::Noted(starts) => {
                for program in starts.take().context("cannot read which programs were started")? {
                    let (identity, may_inherit) = (Identity::from(program.process), program.may_have_sockets);
                    into.program_started(KnownProcess { identity, namespace: None, may_inherit }, program.at);
                }
            }
            Programs::Read(watcher) => {
                self.notes.extend(watcher.begin_tick().map(advice::on_restart));
                for observation in watcher.take() {
                    match observation {
                        Observation::ProgramStarted(process, at) => into.program_started(*process, at),
                        // This watcher follows no connections.
                        Observation::Opened(_) | Observation::Attributed(..) | Observation::Ended(_) => {}
                    }
                }
            }
            Programs::Unknown => {}
        }
        if let Some(events) = &mut self.process_events {
            match events.read(EVENTS_PER_TICK, |event| into.process_event(event)) {
                Ok(read) if read < EVENTS_PER_TICK => {}
                result => {
                    if result.is_err() {
                        // After the error, the kernel still has those from before the loss.
                        let _ = events.read(EVENTS_PER_TICK, |_| {});
                    }
                    into.lost_process_events();
                }
            }
        }
        Ok(())
    }
}

impl CounterSource for Packets {
    fn name(&self) -> &'static str {
        "packets"
    }

    fn read(&mut self, into: &mut dyn FlowSink) -> Result<()> {
        let existing = if std::mem::replace(&mut self.begun, true) { HashMap::new() } else { enter_existing(into) };
        self.counters.read_closers(|socket| into.closed(socket)).context("cannot read who closed sockets")?;
        let (mut sockets, mut remotes) = (Vec::new(), Vec::new());
        let overflow = self
            .counters
            .read_with_remotes(|socket| sockets.push(socket), |end| remotes.push(end))
            .context("cannot read the packet counters")?;
        // After what they have moved: nothing is to be read of a program that is not known yet.
        self.read_programs(into)?;
        // What these moved until now is in the counters that they were entered with.
        sockets.retain(|socket| !existing.get(&socket.cookie).is_some_and(|counted| *counted));
        sockets.iter().for_each(|socket| into.socket(socket));
        remotes.iter().for_each(|end| into.remote_end(end));
        if overflow != (0, 0) {
            self.ticks_with_lost_events += 1;
            self.notes.once("overflow", || {
                "more sockets move bytes within a second than are counted apart: the rest has no owner".into()
            });
            into.without_owner(Counters { original: overflow.1, reply: overflow.0 });
        }
        Ok(())
    }

    fn notes(&mut self) -> Vec<String> {
        self.notes.take()
    }

    fn stays(&self) -> bool {
        true
    }

    fn ticks_with_lost_events(&self) -> u64 {
        self.ticks_with_lost_events
    }
}

/// Enters all sockets that there are. Returns their cookies, and whether what each carried so far is known.
fn enter_existing(into: &mut dyn FlowSink) -> HashMap<u64, bool> {
    let proc_root = Path::new("/proc");
    // Without sock_diag every socket begins as it moves.
    let Ok(mut namespaces) = Namespaces::new(proc_root) else { return HashMap::new() };
    namespaces.scan(&Processes::new(proc_root));
    let deadline = Instant::now() + LONGEST_START;
    let past = counted_by_conntrack(deadline);
    let mut existing = HashMap::new();
    for namespace in namespaces.iter_mut() {
        let zone = namespace.id;
        for protocol in PROTOCOLS {
            // A protocol that this kernel does not list has no sockets here, or they are found as they move.
            let _ = namespace.diag.dump_open(protocol, deadline, |flow| {
                // The counters of a listener are not those of the handshakes, which count as its own.
                let is_connected = flow.original.destination.port != 0;
                let counters = past.get(&flow.original).copied().or(flow.counters).filter(|_| is_connected);
                existing.insert(flow.id, counters.is_some());
                into.existing_socket(&Flow { counters, zone, ..*flow });
            });
        }
    }
    existing
}

/// What flows have carried so far, as the socket at the source of each tuple sees it; empty where conntrack does not count.
fn counted_by_conntrack(deadline: Instant) -> HashMap<Tuple, Counters> {
    let mut counted = HashMap::new();
    let Ok(mut table) = Table::open(Path::new("/proc")) else { return counted };
    let _ = table.dump(deadline, &mut |flow| {
        if let Some(Counters { original, reply }) = flow.counters {
            counted.insert(flow.original, Counters { original, reply });
            counted.insert(flow.reply, Counters { original: reply, reply: original });
        }
    });
    counted
}
