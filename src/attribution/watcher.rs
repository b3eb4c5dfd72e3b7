//! The thread that the kernel tells of every connection as it begins and ends, and that finds its owner at once.
//!
//! A process that lives for two milliseconds is gone at the next tick. So this thread answers the kernel's events as they
//! come, and the tick takes over what it found.
//!
//! ```text
//! conntrack events, exec events ──▶ this thread, EventLookup ──▶ Vec<Observation> ──▶ the tick
//! ```

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{Pid, gettid};

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

use super::Attribution;
use super::per_event::EventLookup;
use super::process_cache::KnownProcess;
use crate::kernel::affinity;
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::conntrack::events::{Event, Events};
use crate::kernel::exec_events::ExecEvents;
use crate::kernel::flow::Flow;

/// Descriptors that may be read from one tick to the next: some 0.2 s of a core.
const BUDGET: u32 = 100_000;
/// New connections that are looked up from one tick to the next, some 30 µs each: this thread runs before all ordinary
/// ones, so its work must be bounded.
const LOOKED_UP_PER_TICK: u32 = 10_000;
/// Observations that wait for the tick at most; beyond that the tick has only its own reading of the table.
const MOST_WAITING: usize = 100_000;
/// Events read at a time, so that none is left waiting while others are answered.
const BATCH: usize = 4096;
/// Connections that wait to be looked up, the latest first, since those are the likeliest to be still there. Of the others
/// the kernel has noted who made them, where it makes notes; who accepted them is left to the tick. In a storm of
/// connections the owners become less sharp, and the host stays responsive.
const QUEUED: usize = 256;

/// Something that happened between two ticks.
#[derive(Debug)]
pub enum Observation {
    /// A process started a program.
    ProgramStarted(Box<KnownProcess>),
    /// A connection began.
    Opened(Box<Flow>),
    /// The owners at the sources of a connection's original and reply tuple, as far as they were found.
    Attributed(Box<Flow>, [Option<Attribution>; 2]),
    /// A connection ended.
    Ended(Box<Flow>),
}

/// The thread, for as long as this lives.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    tcp_owners: Option<Arc<TcpOwners>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    observations: Mutex<Vec<Observation>>,
    /// The number of the tick; the thread renews its budget when it changes.
    tick: AtomicU32,
    /// Whether the thread is to scan the network namespaces.
    scan: AtomicBool,
    lost: AtomicBool,
    stop: AtomicBool,
    wakeup: EventFd,
    /// The thread's id (gettid(2)); 0, which means the caller, until it runs.
    id: AtomicI32,
}

impl Shared {
    fn observations(&self) -> MutexGuard<'_, Vec<Observation>> {
        // The list is valid even if another thread panicked while it held the lock.
        self.observations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the thread read its flags.
    fn wake(&self) {
        // Fails only if 2^64 - 2 wake-ups wait.
        let _ = self.wakeup.write(1);
    }

    fn add(&self, observations: impl IntoIterator<Item = Observation>) {
        let mut waiting = self.observations();
        if waiting.len() < MOST_WAITING {
            waiting.extend(observations);
        } else {
            self.lost.store(true, Ordering::Relaxed);
        }
    }
}

impl Watcher {
    /// Subscribes to the kernel's events, and starts the thread.
    ///
    /// # Errors
    /// Where this user may not subscribe (CAP_NET_ADMIN).
    pub fn start() -> Result<Self> {
        let events = Events::subscribe().context("cannot subscribe to conntrack's events")?;
        // Without exec events and notes the owners of connections that last milliseconds are found less often.
        let execs = ExecEvents::subscribe().ok();
        let tcp_owners = TcpOwners::attach().ok().map(Arc::new);
        let lookup = EventLookup::of_this_host(tcp_owners.clone())?;
        let shared = Arc::new(Shared {
            observations: Mutex::new(Vec::new()),
            tick: AtomicU32::new(1),
            scan: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            id: AtomicI32::new(0),
            wakeup: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .context("cannot make an eventfd")?,
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("watcher".into())
            .spawn(move || run(events, execs, lookup, &theirs))
            .context("cannot start a thread")?;
        Ok(Self { shared, tcp_owners, thread: Some(thread) })
    }

    /// The kernel's notes about TCP connections, where it makes any.
    pub fn tcp_owners(&self) -> Option<Arc<TcpOwners>> {
        self.tcp_owners.clone()
    }

    /// Begins the next tick, which renews the thread's budget.
    pub fn begin_tick(&self) {
        self.shared.tick.fetch_add(1, Ordering::Relaxed);
    }

    /// The observations since the call before, in the order in which they were made.
    pub fn take(&self) -> Vec<Observation> {
        std::mem::take(&mut *self.shared.observations())
    }

    /// Whether events were lost since the call before: more came than could be read or kept.
    pub fn has_lost(&self) -> bool {
        self.shared.lost.swap(false, Ordering::Relaxed)
    }

    /// Does `work` on the current CPU while the thread is kept off it.
    ///
    /// A dump of the kernel's whole table takes milliseconds in which a kernel without preemption runs nothing else on that
    /// CPU, whatever its priority: a connection that begins then may have ended before the thread wakes up.
    pub fn on_another_cpu<T>(&self, work: impl FnOnce() -> T) -> T {
        affinity::run_apart_from(Pid::from_raw(self.shared.id.load(Ordering::Relaxed)), work)
    }

    /// Makes the thread scan the network namespaces of the host's processes before its next look-up.
    pub fn scan_namespaces(&self) {
        self.shared.scan.store(true, Ordering::Relaxed);
        self.shared.wake();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut events: Events, mut execs: Option<ExecEvents>, mut lookup: EventLookup, shared: &Shared) {
    shared.id.store(gettid().as_raw(), Ordering::Relaxed);
    raise_priority();
    let (mut tick, mut left) = (0, 0);
    let (mut batch, mut started) = (Vec::new(), Vec::new());
    let mut queue = VecDeque::new();
    while !shared.stop.load(Ordering::Relaxed) {
        match events.read(BATCH, |event| batch.push(event)) {
            Ok(_) => {}
            // The next tick reads the whole table, and finds the connections that are still in it.
            Err(Errno::ENOBUFS) => shared.lost.store(true, Ordering::Relaxed),
            Err(_) => return,
        }
        if let Some(execs) = &mut execs {
            // The tick finds the processes whose events are lost.
            let _ = execs.read(|pid| started.push(pid));
        }
        if shared.scan.swap(false, Ordering::Relaxed) {
            lookup.scan_namespaces();
        }
        if batch.is_empty() && started.is_empty() && queue.is_empty() {
            wait(&events, execs.as_ref(), Some(shared), PollTimeout::NONE);
            // The next round does what the thread was woken for. With nothing to read this fails at once.
            let _ = shared.wakeup.read();
            continue;
        }
        let now = shared.tick.load(Ordering::Relaxed);
        if now != tick {
            (tick, left) = (now, LOOKED_UP_PER_TICK);
            lookup.begin_tick(BUDGET);
        }
        // First what is quick and cannot wait: the names of processes that may be gone in a moment.
        let read = started.drain(..).filter_map(|pid| lookup.program_started(pid));
        shared.add(read.map(|process| Observation::ProgramStarted(Box::new(process))));
        hand_over(&mut batch, &mut queue, &mut lookup, shared);
        let waits = || wait(&events, execs.as_ref(), None, PollTimeout::ZERO);
        while left > 0
            && let Some((flow, known)) = queue.pop_front()
        {
            left -= 1;
            let found = lookup.look_up(&flow, known, &waits);
            shared.add([Observation::Attributed(Box::new(flow), found)]);
            if waits() {
                break;
            }
        }
        if left == 0 {
            queue.clear();
        }
    }
}

/// Runs this thread before all ordinary ones, at the lowest real-time priority (sched(7)): a process that lives for two
/// milliseconds does not wait until a time slice ends. Where that is not allowed (CAP_SYS_NICE), the owners of short
/// connections on a busy host are found less often.
fn raise_priority() {
    let round_robin = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, round_robin);
}

/// Waits for events, and with `shared` for a wake-up. Returns whether there is anything to do.
fn wait(events: &Events, execs: Option<&ExecEvents>, shared: Option<&Shared>, timeout: PollTimeout) -> bool {
    let fds = [Some(events.as_fd()), execs.map(AsFd::as_fd), shared.map(|shared| shared.wakeup.as_fd())];
    let mut fds: Vec<PollFd> = fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}

/// Hands all events over to the tick in the order in which they came, with the processes that made the new connections
/// where the kernel noted them. The new connections go to the head of the queue: their other ends have to be looked up.
fn hand_over(batch: &mut Vec<Event>, queue: &mut VecDeque<(Flow, bool)>, lookup: &mut EventLookup, shared: &Shared) {
    let mut observations: Vec<Observation> = Vec::with_capacity(batch.len());
    for event in batch.drain(..) {
        match event {
            Event::Opened(flow) => {
                let owner = lookup.owner_from_bpf(&flow);
                let known = owner.is_some();
                observations.push(Observation::Opened(Box::new(flow)));
                if known {
                    observations.push(Observation::Attributed(Box::new(flow), [owner, None]));
                }
                queue.truncate(QUEUED - 1);
                queue.push_front((flow, known));
            }
            Event::Ended(flow) => observations.push(Observation::Ended(Box::new(flow))),
        }
    }
    shared.add(observations);
}
