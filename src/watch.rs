//! The thread that hears of every connection as it begins and ends, and finds out at once whose it is.
//!
//! A process that lives for two milliseconds is gone at the next tick, and with it what would tell its bytes from
//! anybody's. So the kernel's events are answered as they come; the tick takes over what was found.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

use crate::conntrack::events::{Event, Events};
use crate::execs::Execs;
use crate::flow::Flow;
use crate::ledger::Sighting;
use crate::owner::seeker::Seeker;

/// Descriptors that may be looked at from one tick to the next: some 0.2 s of a core.
const BUDGET: u32 = 100_000;
/// New connections that are answered from one tick to the next; at the priority that this thread has, the host comes
/// first. Some 30 µs each.
const ANSWERED_PER_TICK: u32 = 10_000;
/// Events that wait for the tick at most; what comes beyond is left to the tick's own reading of the table.
const MOST_WAITING: usize = 100_000;
/// Events read at a time, so that none is left waiting while others are answered.
const BATCH: usize = 4096;
/// Of those read at a time so many new connections are answered, the last of them: they are the likeliest to be still
/// there. Of the others it is known who made them, where the kernel notes that; who accepted them is left to the tick. A
/// storm costs owners, not order.
const ANSWERED_AT_A_TIME: usize = 256;

/// What happened, and whose it was.
#[derive(Debug)]
pub enum Seen {
    /// A connection began, with these at its two ends; or one that began was handed on to these.
    Opened(Box<Flow>, [Option<Sighting>; 2]),
    /// A connection ended.
    Ended(Box<Flow>),
}

/// The thread, for as long as this lives.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
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
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        // A list that another thread panicked over is still a list.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
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
        // Without it programs that a server starts for a short connection are found less often.
        let execs = Execs::subscribe().ok();
        let seeker = Seeker::of_this_host()?;
        let shared = Arc::new(Shared {
            seen: Mutex::new(Vec::new()),
            tick: AtomicU32::new(1),
            scan: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("cannot make an eventfd")?,
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || run(events, execs, seeker, &theirs))
            .context("cannot start a thread")?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Begins the next tick, and with it the thread's budget anew.
    pub fn begin_tick(&self) {
        self.shared.tick.fetch_add(1, Ordering::Relaxed);
    }

    /// What was seen since the call before, in order.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.shared.seen())
    }

    /// Whether events were lost, since more came than could be read or kept.
    pub fn has_lost(&self) -> bool {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Has the thread look for the network namespaces of the host's processes before its next answer.
    pub fn scan_namespaces(&self) {
        self.shared.scan.store(true, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if self.shared.wake.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn run(mut events: Events, mut execs: Option<Execs>, mut seeker: Seeker, shared: &Shared) {
    raise_priority();
    let (mut tick, mut left) = (0, 0);
    let (mut batch, mut started) = (Vec::new(), Vec::new());
    while !shared.stop.load(Ordering::Relaxed) {
        match events.read(BATCH, |event| batch.push(event)) {
            Ok(_) => {}
            // The next tick's reading of the table makes up for what is still in it.
            Err(Errno::ENOBUFS) => shared.lost.store(true, Ordering::Relaxed),
            Err(_) => return,
        }
        started.clear();
        if let Some(execs) = &mut execs {
            // Those that are lost are looked for at the tick.
            let _ = execs.read(|pid| started.push(pid));
        }
        if batch.is_empty() && started.is_empty() {
            wait(&events, execs.as_ref(), shared);
            continue;
        }
        let now = shared.tick.load(Ordering::Relaxed);
        if now != tick {
            (tick, left) = (now, ANSWERED_PER_TICK);
            seeker.begin(BUDGET);
        }
        if shared.scan.swap(false, Ordering::Relaxed) {
            seeker.scan_namespaces();
        }
        answer(&mut batch, &mut left, &mut seeker, shared);
        for &pid in &started {
            seeker.started(pid, |flow, found| shared.add([Seen::Opened(Box::new(*flow), found)]));
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

fn wait(events: &Events, execs: Option<&Execs>, shared: &Shared) {
    let fds = [Some(events.as_fd()), execs.map(AsFd::as_fd), Some(shared.wake.as_fd())];
    let mut fds: Vec<PollFd> = fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let _ = poll(&mut fds, PollTimeout::NONE);
}

/// Finds out whose the new connections are, the last first, and hands all on in the order they came. `left` is how many
/// more may be looked at before the next tick.
fn answer(batch: &mut Vec<Event>, left: &mut u32, seeker: &mut Seeker, shared: &Shared) {
    let mut answered = 0;
    let mut seen: Vec<Seen> = Vec::with_capacity(batch.len());
    for event in batch.drain(..).rev() {
        seen.push(match event {
            Event::Opened(flow) => {
                let found = if answered < ANSWERED_AT_A_TIME && *left > 0 {
                    (answered, *left) = (answered + 1, *left - 1);
                    seeker.sight(&flow)
                } else {
                    seeker.glance(&flow)
                };
                Seen::Opened(Box::new(flow), found)
            }
            Event::Ended(flow) => Seen::Ended(Box::new(flow)),
        });
    }
    shared.add(seen.into_iter().rev());
}
