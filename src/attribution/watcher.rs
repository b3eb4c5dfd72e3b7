//! The thread that hears of every connection as it begins and ends, and finds out at once whose it is.
//!
//! A process that lives for two milliseconds is gone at the next tick, and with it what would tell its bytes from
//! anybody's. So the kernel's events are answered as they come; the tick takes over what was found.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{Pid, gettid};

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

use crate::attribution::Sighting;
use crate::attribution::per_event::Seeker;
use crate::attribution::process_cache::Cached;
use crate::kernel::bpf::tcp_owners::TcpOwners;
use crate::kernel::conntrack::events::{Event, Events};
use crate::kernel::exec_events::ExecEvents;
use crate::kernel::flow::Flow;

/// Descriptors that may be looked at from one tick to the next: some 0.2 s of a core.
const BUDGET: u32 = 100_000;
/// New connections that are looked for from one tick to the next; at the priority that this thread has, the host comes
/// first. Some 30 µs each.
const ANSWERED_PER_TICK: u32 = 10_000;
/// Events that wait for the tick at most; what comes beyond is left to the tick's own reading of the table.
const MOST_WAITING: usize = 100_000;
/// Events read at a time, so that none is left waiting while others are answered.
const BATCH: usize = 4096;
/// So many connections wait to be looked for, the latest first: they are the likeliest to be still there. Of the others it
/// is known who made them, where the kernel notes that; who accepted them is left to the tick. A storm costs owners, not
/// order.
const UNCLEAR: usize = 256;

/// What happened, and whose it was.
#[derive(Debug)]
pub enum Seen {
    /// A process started a program.
    Started(Box<Cached>),
    /// A connection began.
    Opened(Box<Flow>),
    /// These are at the two ends of one that began.
    Found(Box<Flow>, [Option<Sighting>; 2]),
    /// A connection ended.
    Ended(Box<Flow>),
}

/// The thread, for as long as this lives.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    connects: Option<Arc<TcpOwners>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    /// Counts the ticks; the thread renews its budget when it changes.
    tick: AtomicU32,
    /// Whether network namespaces came or went.
    scan: AtomicBool,
    lost: AtomicBool,
    stop: AtomicBool,
    wake: EventFd,
    /// The thread's id (gettid(2)); 0, which is the caller, until it runs.
    id: AtomicI32,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        // A list that another thread panicked over is still a list.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread look at what it is to do.
    fn wake(&self) {
        // It fails only beyond 2^64 - 2 wakes that wait.
        let _ = self.wake.write(1);
    }

    fn add(&self, seen: impl IntoIterator<Item = Seen>) {
        let mut waiting = self.seen();
        if waiting.len() < MOST_WAITING {
            waiting.extend(seen);
        } else {
            self.lost.store(true, Ordering::Relaxed);
        }
    }
}

impl Watch {
    /// Subscribes, and starts the thread.
    ///
    /// # Errors
    /// Where this user may not subscribe (CAP_NET_ADMIN).
    pub fn start() -> Result<Self> {
        let events = Events::subscribe().context("cannot subscribe to conntrack's events")?;
        // Without them what is over within milliseconds is found less often.
        let execs = ExecEvents::subscribe().ok();
        let connects = TcpOwners::attach().ok().map(Arc::new);
        let seeker = Seeker::of_this_host(connects.clone())?;
        let shared = Arc::new(Shared {
            seen: Mutex::new(Vec::new()),
            tick: AtomicU32::new(1),
            scan: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            id: AtomicI32::new(0),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .context("cannot make an eventfd")?,
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || run(events, execs, seeker, &theirs))
            .context("cannot start a thread")?;
        Ok(Self { shared, connects, thread: Some(thread) })
    }

    /// What the kernel notes of connections, where it does.
    pub fn connects(&self) -> Option<Arc<TcpOwners>> {
        self.connects.clone()
    }

    /// Begins the next tick, and with it the thread's budget anew.
    pub fn begin_tick(&self) {
        self.shared.tick.fetch_add(1, Ordering::Relaxed);
    }

    /// What was seen since the call before, in order.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.shared.seen())
    }

    /// Whether events were lost since the call before, since more came than could be read or kept.
    pub fn has_lost(&self) -> bool {
        self.shared.lost.swap(false, Ordering::Relaxed)
    }

    /// Does `work` on one processor while the thread keeps to the others.
    ///
    /// Reading the kernel's whole table takes milliseconds in which a kernel without preemption lets nobody else have that
    /// processor, whatever their priority, and what begins meanwhile may have ended before the thread is woken.
    pub fn apart<T>(&self, work: impl FnOnce() -> T) -> T {
        let here = Pid::from_raw(0);
        let thread = Pid::from_raw(self.shared.id.load(Ordering::Relaxed));
        let allowed = sched_getaffinity(here).ok();
        if let Some(allowed) = &allowed
            && let Ok(processor) = sched_getcpu()
        {
            let (mut one, mut others) = (CpuSet::new(), *allowed);
            // With one processor the thread cannot keep to others, and is left alone.
            if one.set(processor).and_then(|()| others.unset(processor)).is_ok() && others != CpuSet::new() {
                let _ = sched_setaffinity(here, &one);
                let _ = sched_setaffinity(thread, &others);
            }
        }
        let done = work();
        if let Some(allowed) = &allowed {
            let _ = sched_setaffinity(here, allowed);
            let _ = sched_setaffinity(thread, allowed);
        }
        done
    }

    /// Has the thread look for the network namespaces of the host's processes before its next answer.
    pub fn scan_namespaces(&self) {
        self.shared.scan.store(true, Ordering::Relaxed);
        self.shared.wake();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut events: Events, mut execs: Option<ExecEvents>, mut seeker: Seeker, shared: &Shared) {
    shared.id.store(gettid().as_raw(), Ordering::Relaxed);
    raise_priority();
    let (mut tick, mut left) = (0, 0);
    let (mut batch, mut started) = (Vec::new(), Vec::new());
    let mut unclear = VecDeque::new();
    while !shared.stop.load(Ordering::Relaxed) {
        match events.read(BATCH, |event| batch.push(event)) {
            Ok(_) => {}
            // The next tick's reading of the table makes up for what is still in it.
            Err(Errno::ENOBUFS) => shared.lost.store(true, Ordering::Relaxed),
            Err(_) => return,
        }
        if let Some(execs) = &mut execs {
            // Those that are lost are looked for at the tick.
            let _ = execs.read(|pid| started.push(pid));
        }
        if shared.scan.swap(false, Ordering::Relaxed) {
            seeker.scan_namespaces();
        }
        if batch.is_empty() && started.is_empty() && unclear.is_empty() {
            wait(&events, execs.as_ref(), Some(shared), PollTimeout::NONE);
            // What woke it is done in the next round. With nothing to read this fails at once.
            let _ = shared.wake.read();
            continue;
        }
        let now = shared.tick.load(Ordering::Relaxed);
        if now != tick {
            (tick, left) = (now, ANSWERED_PER_TICK);
            seeker.begin(BUDGET);
        }
        // First what is quick and cannot wait: what the processes are called that may be gone in a moment.
        shared.add(
            started.drain(..).filter_map(|pid| seeker.started(pid)).map(|process| Seen::Started(Box::new(process))),
        );
        glance(&mut batch, &mut unclear, &mut seeker, shared);
        let waits = || wait(&events, execs.as_ref(), None, PollTimeout::ZERO);
        while left > 0
            && let Some((flow, known)) = unclear.pop_front()
        {
            left -= 1;
            let found = seeker.sight(&flow, known, &waits);
            shared.add([Seen::Found(Box::new(flow), found)]);
            if waits() {
                break;
            }
        }
        if left == 0 {
            unclear.clear();
        }
    }
}

/// Puts this thread before all ordinary ones, at the lowest real-time priority (sched(7)): a process that lives for two
/// milliseconds does not wait for a time slice to end. Where it is not allowed (CAP_SYS_NICE), the short connections of
/// a busy host are found less often.
fn raise_priority() {
    let round_robin = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, round_robin);
}

/// Waits for events, and with `shared` for being woken. Returns whether there is something.
fn wait(events: &Events, execs: Option<&ExecEvents>, shared: Option<&Shared>, timeout: PollTimeout) -> bool {
    let fds = [Some(events.as_fd()), execs.map(AsFd::as_fd), shared.map(|shared| shared.wake.as_fd())];
    let mut fds: Vec<PollFd> = fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}

/// Hands all events on in the order they came, with who made the new connections where that is known at a glance. Who is at
/// the other end never is: they are put before those that were not clear before.
fn glance(batch: &mut Vec<Event>, unclear: &mut VecDeque<(Flow, bool)>, seeker: &mut Seeker, shared: &Shared) {
    let mut seen: Vec<Seen> = Vec::with_capacity(batch.len());
    for event in batch.drain(..) {
        match event {
            Event::Opened(flow) => {
                let found = seeker.glance(&flow);
                let known = found.is_some();
                seen.push(Seen::Opened(Box::new(flow)));
                if known {
                    seen.push(Seen::Found(Box::new(flow), [found, None]));
                }
                unclear.truncate(UNCLEAR - 1);
                unclear.push_front((flow, known));
            }
            Event::Ended(flow) => seen.push(Seen::Ended(Box::new(flow))),
        }
    }
    shared.add(seen);
}
