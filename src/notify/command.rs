//! Runs the commands of a notification file: without a shell, and without making a tick wait for them.
//!
//! ```text
//! Commands::queue ──▶ jobs of each section ──▶ a thread for each running command: starts it, waits for its end, and
//!                                              starts what waited for its place
//! ```
//! One command that hangs must not keep the others from running: each section has places of its own, and no application
//! takes more than a few of them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::{Account, Rule};
use crate::calendar;
use crate::output::{Direction, Notification, QuotaNotification};
use crate::printable::printable;
use crate::privileges::{Duty, keep_for};
use crate::traffic::subject::Subject;

/// The commands of a section that can always run at the same time.
const OWN_PLACES: usize = 4;
/// The further commands of all sections together that can run at the same time.
const SHARED_PLACES: usize = 64;
/// The most commands of a section that run at the same time.
const MOST_OF_SECTION: usize = 32;
/// The most commands for one application and direction that run at the same time.
const MOST_OF_APPLICATION: usize = 4;
/// The most commands of a section that wait.
const MOST_WAITING: usize = 2000;

/// The stack of a thread that starts a command, or waits for its end: it needs little.
const STACK: usize = 128 << 10;

/// The commands that run, and those that wait.
#[derive(Debug, Default)]
pub struct Commands {
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// By the number of the rule.
    sections: BTreeMap<u64, Section>,
    /// The time of the last tick.
    now: Option<Instant>,
    notes: Vec<String>,
    /// The number of commands that were started.
    started: u64,
}

/// The commands of one rule.
#[derive(Debug, Default)]
struct Section {
    /// In the order in which they were queued. Two for one application and direction, a notification and its recovery or
    /// the other way round, stand next to each other.
    waiting: Vec<Job>,
    running: Vec<Running>,
    /// Why the last command could not be started.
    failure: Option<String>,
}

/// What a command is about.
///
/// A quota has no direction.
type Topic = (Arc<Subject>, Option<Direction>);

/// What happened.
#[derive(Debug, Clone)]
enum Event {
    Threshold(Notification),
    Quota(QuotaNotification),
}

impl Event {
    fn topic(&self) -> Topic {
        match self {
            Self::Threshold(it) => (Arc::clone(&it.application), Some(it.direction)),
            Self::Quota(it) => (Arc::clone(&it.application), None),
        }
    }

    /// Whether what was notified is over.
    fn is_recovery(&self) -> bool {
        matches!(self, Self::Threshold(Notification { recovered: true, .. }))
    }
}

/// A command that waits.
#[derive(Debug, Clone)]
struct Job {
    topic: Topic,
    rule: Arc<Rule>,
    event: Event,
    /// Whether it could not be started. It is tried again in the next tick.
    failed: bool,
}

#[derive(Debug)]
struct Running {
    number: u64,
    topic: Topic,
    rule: Arc<Rule>,
    since: Instant,
    /// The leader of its process group; `None` until it has been started, and after it was killed.
    pid: Option<Pid>,
}

impl Commands {
    /// Queues the command for a notification, if the rule with the number `id` has one. [`tick`](Self::tick) starts it.
    ///
    /// The command learns what happened from its environment: `BWMON_APPLICATION`, `BWMON_DIRECTION` (`in` or `out`),
    /// `BWMON_THRESHOLD_KB_PER_S`, `BWMON_VALUE_KB_PER_S` and `BWMON_EVENT` (`exceeded` or `recovered`). Its stdin is
    /// empty; it shares stdout and stderr with this program, and has a process group of its own. It has no capability, and runs as
    /// the user of the rule, or as who started this program.
    ///
    /// If a command for the same event of the same application and direction still waits, only the newer one runs.
    ///
    /// # Errors
    /// If too many commands of the rule wait, as one line for the user: the notification has to be tried again.
    pub fn queue(&mut self, id: u64, rule: &Arc<Rule>, notification: &Notification) -> Result<(), String> {
        self.queue_event(id, rule, Event::Threshold(notification.clone()))
    }

    /// Does the same for a quota: its command has `BWMON_APPLICATION`, `BWMON_EVENT` (`quota_warning` or `quota_exceeded`),
    /// `BWMON_QUOTA_BYTES`, `BWMON_QUOTA_USED_BYTES`, `BWMON_QUOTA_PERIOD` (`day`, `week` or `month`) and
    /// `BWMON_QUOTA_PERIOD_START` (a date).
    ///
    /// # Errors
    /// As for [`queue`](Self::queue).
    pub fn queue_quota(&mut self, id: u64, rule: &Arc<Rule>, quota: &QuotaNotification) -> Result<(), String> {
        self.queue_event(id, rule, Event::Quota(quota.clone()))
    }

    fn queue_event(&mut self, id: u64, rule: &Arc<Rule>, event: Event) -> Result<(), String> {
        let has_command = words(rule, &event).is_some();
        let mut queue = lock(&self.queue);
        let waiting = &mut queue.sections.entry(id).or_default().waiting;
        let job = Job { topic: event.topic(), rule: Arc::clone(rule), event, failed: false };
        let first = waiting.iter().position(|other| other.topic == job.topic);
        if let Some(first) = first
            && job.event.is_recovery()
            && waiting[first].failed
        {
            // The command for the notification has never run.
            waiting.remove(first);
            return Ok(());
        }
        if !has_command {
            return Ok(());
        }
        let Some(first) = first else {
            if waiting.len() >= MOST_WAITING {
                let application = printable(&job.topic.0.label(), 50);
                let section = section_name(rule);
                return Err(format!(
                    "[{section}] {MOST_WAITING} commands wait already; the one for {application} is tried again"
                ));
            }
            waiting.push(job);
            return Ok(());
        };
        let second = (first + 1..waiting.len()).next().filter(|&second| waiting[second].topic == job.topic);
        if waiting[first].event.is_recovery() == job.event.is_recovery() {
            waiting[first] = job;
            second.map(|second| waiting.remove(second));
        } else if let Some(second) = second {
            waiting[second] = job;
        } else {
            waiting.insert(first + 1, job);
        }
        Ok(())
    }

    /// Starts commands that wait, those for the applications that exceed their thresholds the most first. Kills those that
    /// have run for longer than their rule lets them, with their process groups. Returns the messages for the user since the
    /// last call, one line each.
    pub fn tick(&mut self, now: Instant) -> Vec<String> {
        let mut queue = lock(&self.queue);
        queue.now = Some(now);
        queue.kill_overdue(now);
        for section in queue.sections.values_mut() {
            section.waiting.iter_mut().for_each(|job| job.failed = false);
        }
        queue.sections.retain(|_, section| !section.is_idle());
        start_waiting(&self.queue, &mut queue);
        std::mem::take(&mut queue.notes)
    }

    /// Whether no command runs or waits.
    pub fn is_idle(&self) -> bool {
        lock(&self.queue).sections.values().all(Section::is_idle)
    }
}

impl Queue {
    fn kill_overdue(&mut self, now: Instant) {
        for running in self.sections.values_mut().flat_map(|section| &mut section.running) {
            let Some(timeout) = running.rule.command_timeout else { continue };
            if now.saturating_duration_since(running.since) >= timeout
                && let Some(pid) = running.pid.take()
            {
                // It is not reaped before it is off this list, so the number is still its own.
                let _ = killpg(pid, Signal::SIGKILL);
                let (section, seconds) = (section_name(&running.rule), timeout.as_secs());
                self.notes.push(format!("[{section}] a command that has run for {seconds} s is killed"));
            }
        }
    }

    /// Takes note that a command could not be started: it waits for the next tick, unless a newer one for the same
    /// takes its place.
    fn failed(&mut self, id: u64, number: u64, job: Job, error: String) {
        let Some(section) = self.sections.get_mut(&id) else { return };
        section.running.retain(|running| running.number != number);
        if section.failure.as_ref() != Some(&error) {
            self.notes.push(error.clone());
            section.failure = Some(error);
        }
        match section.waiting.iter().position(|waiting| waiting.topic == job.topic) {
            None => section.waiting.push(Job { failed: true, ..job }),
            // A recovery of what was never notified.
            Some(at) if section.waiting[at].event.is_recovery() => drop(section.waiting.remove(at)),
            Some(_) => {}
        }
    }

    /// The section with the fewest running commands of those that may and can start one.
    fn next_section(&mut self) -> Option<(u64, usize)> {
        let shared: usize =
            self.sections.values().map(|section| section.running.len().saturating_sub(OWN_PLACES)).sum();
        let may_start = |running: usize| running < OWN_PLACES || (running < MOST_OF_SECTION && shared < SHARED_PLACES);
        let sections = self.sections.iter().filter(|(_, section)| may_start(section.running.len()));
        let startable = sections.filter_map(|(&id, section)| Some((section.running.len(), id, section.next_job()?)));
        startable.min().map(|(_, id, job)| (id, job))
    }
}

impl Section {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// The job to start next: for the application with the fewest running commands, and then the most urgent one.
    fn next_job(&self) -> Option<usize> {
        let mut best: Option<(usize, f64, usize)> = None;
        for (at, job) in self.waiting.iter().enumerate() {
            let is_second = at > 0 && self.waiting[at - 1].topic == job.topic;
            let running = self.running.iter().filter(|running| running.topic == job.topic).count();
            if is_second || job.failed || running >= MOST_OF_APPLICATION {
                continue;
            }
            let urgency = job.urgency();
            if best.is_none_or(|(least, most, _)| running < least || (running == least && urgency > most)) {
                best = Some((running, urgency, at));
            }
        }
        best.map(|(_, _, at)| at)
    }
}

impl Job {
    /// How many times its threshold the average is; a recovery goes first, and so does what exceeds a limit below zero.
    fn urgency(&self) -> f64 {
        match &self.event {
            Event::Threshold(Notification {
                threshold_kb_per_s: threshold @ 1..,
                recovered: false,
                value_kb_per_s,
                ..
            }) => value_kb_per_s / *threshold as f64,
            Event::Threshold(_) => f64::INFINITY,
            Event::Quota(quota) => quota.used_bytes as f64 / quota.quota_bytes as f64,
        }
    }
}

/// Starts as many of the commands that wait as may run.
fn start_waiting(shared: &Arc<Mutex<Queue>>, queue: &mut Queue) {
    while let Some((id, at)) = queue.next_section() {
        let (number, since) = (queue.started, queue.now.unwrap_or_else(Instant::now));
        queue.started += 1;
        let Some(section) = queue.sections.get_mut(&id) else { return };
        let job = section.waiting.remove(at);
        let (topic, rule) = (job.topic.clone(), Arc::clone(&job.rule));
        section.running.push(Running { number, topic, rule, since, pid: None });
        let thread = std::thread::Builder::new().name("command".into()).stack_size(STACK);
        let (shared, of_thread) = (Arc::clone(shared), job.clone());
        if let Err(error) = thread.spawn(move || run(&shared, id, number, of_thread)) {
            let error = format!("[{}] cannot start a thread for a command: {error}", section_name(&job.rule));
            queue.failed(id, number, job, error);
        }
    }
}

/// Runs one command from start to end, and then starts what waited for its place.
fn run(shared: &Arc<Mutex<Queue>>, id: u64, number: u64, job: Job) {
    keep_for(Duty::RunningCommands);
    let child = spawn(&job.rule, &job.event);
    let mut queue = lock(shared);
    match child {
        Ok(mut child) => {
            let pid = Pid::from_raw(child.id().cast_signed());
            if let Some(section) = queue.sections.get_mut(&id) {
                section.failure = None;
                section.running.iter_mut().filter(|it| it.number == number).for_each(|it| it.pid = Some(pid));
            }
            drop(queue);
            // Leaves the zombie: until it is off the list, its number must not be given to another process.
            while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
            queue = lock(shared);
            if let Some(section) = queue.sections.get_mut(&id) {
                section.running.retain(|running| running.number != number);
            }
            let _ = child.wait();
        }
        Err(error) => queue.failed(id, number, job, error),
    }
    start_waiting(shared, &mut queue);
}

/// The command and its arguments for a notification, if the rule has one.
fn words<'r>(rule: &'r Rule, event: &Event) -> Option<(&'r OsString, &'r [OsString])> {
    let command = if event.is_recovery() { &rule.recovery_command } else { &rule.notification_command };
    command.as_deref()?.split_first()
}

/// Starts the command for a notification; an error is one line for the user.
fn spawn(rule: &Rule, event: &Event) -> Result<Child, String> {
    let (program, arguments) = words(rule, event).ok_or("no command")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).process_group(0);
    command.env("BWMON_APPLICATION", OsStr::from_bytes(&event.topic().0.label()));
    match event {
        Event::Threshold(notification) => command
            .env("BWMON_DIRECTION", notification.direction.to_string())
            .env("BWMON_THRESHOLD_KB_PER_S", notification.threshold_kb_per_s.to_string())
            .env("BWMON_VALUE_KB_PER_S", format!("{:.2}", notification.value_kb_per_s))
            .env("BWMON_EVENT", if notification.recovered { "recovered" } else { "exceeded" }),
        Event::Quota(quota) => {
            let start = calendar::local(quota.period_start, &jiff::tz::TimeZone::system());
            command
                .env("BWMON_EVENT", quota.event())
                .env("BWMON_QUOTA_BYTES", quota.quota_bytes.to_string())
                .env("BWMON_QUOTA_USED_BYTES", quota.used_bytes.to_string())
                .env("BWMON_QUOTA_PERIOD", quota.period.name())
                .env("BWMON_QUOTA_PERIOD_START", start.strftime("%F").to_string())
        }
    };
    start_as(rule.user.as_ref(), command).map_err(|error| {
        let (section, program) = (section_name(rule), printable(program.as_bytes(), 50));
        format!("[{section}] cannot start {program}: {}", reason(&error))
    })
}

/// Starts a command as `user`, by a thread that becomes that user and ends: no other one may follow it there.
fn start_as(user: Option<&Account>, mut command: Command) -> io::Result<Child> {
    // They are how this program, not the command, talks to the service manager (sd_notify(3)).
    command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_PID").env_remove("WATCHDOG_USEC");
    std::thread::scope(|scope| {
        let start = || {
            Account::give_to(user, &mut command)?;
            command.spawn()
        };
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, start)?;
        thread.join().map_err(|_| io::Error::other("the thread that starts it has panicked"))?
    })
}

fn reason(error: &io::Error) -> String {
    let plain = match error.kind() {
        ErrorKind::NotFound => "there is no such program",
        ErrorKind::PermissionDenied => "this user may not run it",
        ErrorKind::InvalidInput => "a command has no NUL byte",
        ErrorKind::ArgumentListTooLong => "the application's name is too long",
        _ => return error.to_string(),
    };
    plain.to_owned()
}

fn section_name(rule: &Rule) -> String {
    printable(rule.section.as_bytes(), 50)
}

/// The queue. It is whole even if a thread panicked while it had it: each change is made at once.
fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}
