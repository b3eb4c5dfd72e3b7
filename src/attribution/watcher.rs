//! A thread that reads the kernel's events when connections begin and end, and finds the owners of new ones at once.
//!
//! A process that lives for two milliseconds is gone at the next tick. So this thread handles the kernel's events as
//! they come, and the tick takes its observations.
//!
//! ```text
//! conntrack events, exec events ──▶ this thread, EventLookup ──▶ Vec<Observation> ──▶ the tick
//! ```

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{Pid, gettid};

use super::Attribution;
use super::per_event::EventLookup;
use super::process_cache::KnownProcess;
use crate::kernel::affinity;
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::command_line::{PATIENCE, Reading, give_up};
use crate::kernel::conntrack::events::{Event, Events};
use crate::kernel::flow::Flow;
use crate::kernel::process::Processes;
use crate::kernel::process_events::{ProcessEvent, ProcessEvents};
use crate::kernel::scheduling::{Policy, set_policy};
use crate::privileges::{Duty, keep_for};

/// The most descriptors that are read from one tick to the next: some 0.2 s of a core.
const BUDGET: u32 = 100_000;
/// The most new connections that are looked up from one tick to the next, some 30 µs each: this thread runs before all
/// ordinary ones, so its work must be bounded.
const CONNECTIONS_PER_TICK: u32 = 10_000;
/// The most observations that wait for the tick; beyond that the tick has only its own reading of the table.
const MOST_WAITING: usize = 100_000;
/// The most datagrams with events that are read at a time: enough to read all that wait before any is handled.
const BATCH: usize = 4096;
/// The most connections that wait for a lookup, the latest first: those most likely still exist. Of the others, the
/// kernel has recorded the process that connected, if it makes records; the tick looks up the process that accepted. So
/// in a storm of connections the owners are less exact, and the host stays responsive.
const QUEUED: usize = 256;

/// Something that happened between two ticks.
#[derive(Debug)]
pub enum Observation {
    /// A process started a program, at this time of CLOCK_MONOTONIC in ns.
    ProgramStarted(Box<KnownProcess>, u64),
    /// A connection began.
    Opened(Box<Flow>),
    /// The owners at the source of a connection's original and at that of its reply tuple, as far as they were found.
    Attributed(Box<Flow>, [Option<Attribution>; 2]),
    /// A connection ended.
    Ended(Box<Flow>),
}

/// The running thread. Dropping this ends it.
#[derive(Debug)]
pub struct Watcher {
    follows: Follows,
    shared: Arc<Shared>,
    tcp_owners: Option<Arc<TcpOwners>>,
    thread: JoinHandle<()>,
}

/// What the thread follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follows {
    /// Connections, and programs as far as the kernel reports them.
    Connections,
    Programs,
}

#[derive(Debug)]
struct Shared {
    observations: Mutex<Vec<Observation>>,
    /// The number of the tick. When it changes, the thread renews its budget.
    tick: AtomicU32,
    /// Whether the thread is to scan the network namespaces.
    scan: AtomicBool,
    lost: AtomicBool,
    stop: AtomicBool,
    wakeup: EventFd,
    /// The thread's id (gettid(2)); 0, which means the caller, until it runs.
    id: AtomicI32,
    /// The command line that the thread reads at present: a process can make that last for ever.
    reading: Reading,
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
        let tcp_owners = TcpOwners::attach().ok().map(Arc::new);
        let (shared, thread) = spawn(Follows::Connections, tcp_owners.clone())?;
        Ok(Self { follows: Follows::Connections, shared, tcp_owners, thread })
    }

    /// Starts a thread that reads programs as they start, and follows no connections.
    ///
    /// # Errors
    /// Where this user may not subscribe to exec events.
    pub fn of_programs() -> Result<Self> {
        let (shared, thread) = spawn(Follows::Programs, None)?;
        Ok(Self { follows: Follows::Programs, shared, tcp_owners: None, thread })
    }

    /// The kernel's records of the owners of TCP connections, if it makes any.
    pub fn tcp_owners(&self) -> Option<Arc<TcpOwners>> {
        self.tcp_owners.clone()
    }

    /// Begins the next tick, which renews the thread's budget. If the thread has ended or waits for a process, starts another
    /// one, and returns what has happened in a few words.
    pub fn begin_tick(&mut self) -> Option<String> {
        self.shared.tick.fetch_add(1, Ordering::Relaxed);
        let why = if self.thread.is_finished() {
            "events could no longer be read".to_owned()
        } else {
            let pid = self.waits_for()?;
            let user = Processes::new("/proc").user(pid);
            give_up(pid, user);
            let user = user.map(|user| format!(", user {user}")).unwrap_or_default();
            format!("the command line of process {pid}{user} could not be read")
        };
        let (shared, thread) = match spawn(self.follows, self.tcp_owners.clone()) {
            Ok(started) => started,
            Err(error) => return Some(format!("{why}, and following them anew failed: {error:#}")),
        };
        self.shared.stop.store(true, Ordering::Relaxed);
        shared.lost.store(true, Ordering::Relaxed);
        // What the other one has found is still good.
        shared.add(std::mem::take(&mut *self.shared.observations()));
        // It may be lost; if not, it ends by itself.
        (self.shared, self.thread) = (shared, thread);
        Some(why)
    }

    /// The process whose command line keeps the thread waiting.
    fn waits_for(&self) -> Option<u32> {
        let reading = self.shared.reading.now()?;
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            std::thread::sleep(PATIENCE / 50);
            if self.shared.reading.now() != Some(reading) {
                return None;
            }
        }
        self.shared.reading.is_waiting().then_some(reading.0)
    }

    /// The observations since the last call, in the order in which they were made.
    pub fn take(&self) -> Vec<Observation> {
        std::mem::take(&mut *self.shared.observations())
    }

    /// Whether events were lost since the last call: more came than could be read or kept.
    pub fn has_lost(&self) -> bool {
        self.shared.lost.swap(false, Ordering::Relaxed)
    }

    /// Calls `work` on the current CPU, and keeps the thread off that CPU while it lasts.
    ///
    /// A dump of the kernel's whole table takes milliseconds, in which a kernel without preemption runs nothing else on
    /// that CPU, whatever its priority: a connection that begins then may have ended before the thread wakes up.
    pub fn run_apart<T>(&self, work: impl FnOnce() -> T) -> T {
        affinity::run_apart_from(Pid::from_raw(self.shared.id.load(Ordering::Relaxed)), work)
    }

    /// Makes the thread scan the network namespaces of the host's processes before its next lookup.
    pub fn scan_namespaces(&self) {
        self.shared.scan.store(true, Ordering::Relaxed);
        self.shared.wake();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake();
        // A thread that waits for a process is left to itself.
        while !self.thread.is_finished() && self.waits_for().is_none() {
            std::thread::sleep(PATIENCE / 50);
        }
    }
}

/// Subscribes to the kernel's events, and starts the thread.
fn spawn(follows: Follows, tcp_owners: Option<Arc<TcpOwners>>) -> Result<(Arc<Shared>, JoinHandle<()>)> {
    let (events, execs) = match follows {
        Follows::Connections => {
            let events = Events::subscribe().context("cannot subscribe to conntrack's events")?;
            // Without exec events and records the owners of connections that last milliseconds are found less often.
            (Some(events), ProcessEvents::of_programs().ok())
        }
        Follows::Programs => (None, Some(ProcessEvents::of_programs()?)),
    };
    let reading = Reading::default();
    let lookup = EventLookup::of_this_host(tcp_owners, reading.clone())?;
    let shared = Arc::new(Shared {
        observations: Mutex::new(Vec::new()),
        tick: AtomicU32::new(1),
        scan: AtomicBool::new(false),
        lost: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        id: AtomicI32::new(0),
        wakeup: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .context("cannot make an eventfd")?,
        reading,
    });
    let theirs = Arc::clone(&shared);
    let thread = std::thread::Builder::new()
        .name("watcher".into())
        .spawn(move || run(events, execs, lookup, &theirs))
        .context("cannot start a thread")?;
    Ok((shared, thread))
}

fn run(mut events: Option<Events>, mut execs: Option<ProcessEvents>, mut lookup: EventLookup, shared: &Shared) {
    shared.id.store(gettid().as_raw(), Ordering::Relaxed);
    raise_priority();
    keep_for(Duty::Watching);
    let (mut tick, mut left) = (0, 0);
    let (mut batch, mut started) = (Vec::new(), Vec::new());
    let mut queue = VecDeque::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let read = events.as_mut().map_or(Ok(0), |events| events.read(BATCH, |event| batch.push(event)));
        match read {
            Ok(_) => {}
            // The next tick reads the whole table, and finds the connections that are still in it.
            Err(Errno::ENOBUFS) => shared.lost.store(true, Ordering::Relaxed),
            Err(_) => return,
        }
        if let Some(execs) = &mut execs {
            // The tick finds the processes whose events are lost.
            let _ = execs.read(BATCH, |event| started.push(event));
        }
        if shared.scan.swap(false, Ordering::Relaxed) {
            lookup.scan_namespaces();
        }
        if batch.is_empty() && started.is_empty() && queue.is_empty() {
            wait(events.as_ref(), execs.as_ref(), Some(shared), PollTimeout::NONE);
            // The next round does what the thread was woken for. With nothing to read this fails at once.
            let _ = shared.wakeup.read();
            continue;
        }
        let now = shared.tick.load(Ordering::Relaxed);
        if now != tick {
            (tick, left) = (now, CONNECTIONS_PER_TICK);
            lookup.begin_tick(BUDGET);
        }
        // First the command lines, which are quick to read: the processes may be gone in a moment.
        shared.add(started.drain(..).filter_map(|event| match event {
            ProcessEvent::Exec { pid, at } => {
                Some(Observation::ProgramStarted(Box::new(lookup.program_started(pid)?), at))
            }
            ProcessEvent::Fork { .. } => None,
        }));
        forward_events(&mut batch, &mut queue, &mut lookup, shared);
        let event_waits = || wait(events.as_ref(), execs.as_ref(), None, PollTimeout::ZERO);
        while left > 0
            && let Some((flow, known)) = queue.pop_front()
        {
            left -= 1;
            let found = lookup.look_up(&flow, known, &event_waits);
            shared.add([Observation::Attributed(Box::new(flow), found)]);
            if event_waits() {
                break;
            }
        }
        if left == 0 {
            queue.clear();
        }
    }
}

/// Gives this thread the lowest real-time priority (sched(7)), so that it runs before all ordinary ones: a process that
/// lives for two milliseconds does not wait until a time slice ends. Without CAP_SYS_NICE the kernel refuses, and on a
/// busy host the owners of short connections are found less often.
fn raise_priority() {
    let _ = set_policy(Policy::RealTime);
}

/// Waits for events, and with `shared` for a wake-up. Returns whether there is anything to do.
fn wait(events: Option<&Events>, execs: Option<&ProcessEvents>, shared: Option<&Shared>, timeout: PollTimeout) -> bool {
    let fds = [events.map(AsFd::as_fd), execs.map(AsFd::as_fd), shared.map(|shared| shared.wakeup.as_fd())];
    let mut fds: Vec<PollFd> = fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}

/// Forwards all events to the tick in the order in which they came, with the process that made a new connection if the
/// kernel has recorded it. Puts the new connections at the head of the queue: their other ends have to be looked up.
fn forward_events(
    batch: &mut Vec<Event>,
    queue: &mut VecDeque<(Flow, bool)>,
    lookup: &mut EventLookup,
    shared: &Shared,
) {
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
