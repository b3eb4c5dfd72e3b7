//! The history: how many bytes each application moved in each minute, hour, day and month, in an SQLite file.
//!
//! ```text
//! each tick: moved bytes ──▶ History::record: the sums of the open minute
//!                                │ once a minute, through a bounded queue
//!                                ▼
//!              thread: settle ──▶ Store::write: one transaction      Report::read ──▶ text, JSON, CSV
//!                                                   └──────▶ FILE ◀──────┘
//! ```
//! Nothing of this makes a tick wait: the thread has the disk to itself. If that is full, broken or slow, the user is told, the
//! minutes wait in the queue, and when that is full, they are added up to one. The minute that was open is lost when the program is
//! killed, and nothing else.
//!
//! Where to read on: `schema` is the file, `store` what is written, `settle` whose bytes they are, `writer` the thread, [`report`]
//! and [`chart`] read. docs/history.md describes the file for other tools.

pub mod chart;
pub mod report;
mod schema;
mod settle;
mod store;
mod writer;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use jiff::tz::TimeZone;

use crate::calendar::seconds;
use crate::traffic::source::VisitRemotes;
use crate::traffic::subject::Subject;

use settle::Batch;
use store::Store;
use writer::{Job, Message, Writer};

/// The minutes and questions that wait for the thread.
const QUEUED: usize = 64;
/// The most groups that an open minute tells apart: more than the file gets.
const MOST_OPEN: usize = 10_000;
/// How long the end of the program waits for the last minute to be written.
const LAST_TIME: Duration = Duration::from_secs(2);

/// How the history is kept.
#[derive(Debug, Clone)]
pub struct HistorySettings {
    /// The file.
    pub file: PathBuf,
    /// Whether each remote address has rows of its own.
    pub remotes: bool,
    /// How much is kept.
    pub kept: Kept,
    /// Where days and months begin.
    pub zone: TimeZone,
    /// How often it is written, in seconds, 1 to 60; at least at the end of each minute.
    pub interval_s: u32,
}

/// How much is kept. Months are kept for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The number of minutes with traffic.
    pub minutes: u32,
    /// The number of hours with traffic.
    pub hours: u32,
    /// The number of days with traffic.
    pub days: u32,
    /// The size of the file beyond which it keeps less than that, in bytes.
    pub most_bytes: u64,
}

/// A day of minutes, a month of hours, two years of days, in 256 MiB.
impl Default for Kept {
    fn default() -> Self {
        Self { minutes: 1440, hours: 744, days: 731, most_bytes: 256 << 20 }
    }
}

/// What a group moved in a tick.
#[derive(Debug, Clone, Copy)]
pub struct Moved<'a> {
    /// The group.
    pub group: &'a Arc<Subject>,
    /// The user whose processes moved it; `None` where that is not known.
    pub uid: Option<u32>,
    /// Bytes in and out.
    pub bytes: [u64; 2],
}

/// The bytes of each name since a time, for the quotas of a section.
#[derive(Debug)]
pub struct Sums {
    /// The section that asked.
    pub section: String,
    /// The time.
    pub since: i64,
    /// The bytes in and out together of each [`recorded_name`](Subject::recorded_name).
    pub bytes: HashMap<String, u64>,
    /// The names that the user was told of since, with the bytes of the quota.
    pub told: Vec<(String, u64)>,
}

/// The history that a program keeps.
#[derive(Debug)]
pub struct History {
    remotes: bool,
    interval_s: i64,
    /// `None` before the first tick.
    open: Option<OpenMinute>,
    /// The number of batches that the thread was given.
    batches: u64,
    queue: Option<SyncSender<Job>>,
    messages: Receiver<Message>,
    /// Dropped when the program ends: then the thread no longer waits for a disk.
    going_on: Option<Sender<()>>,
    notes: Vec<String>,
    sums: Vec<Sums>,
}

/// What has moved since the last batch.
#[derive(Debug)]
struct OpenMinute {
    /// When the last tick was, in seconds since 1970: what the next one reads has moved since.
    at: i64,
    batch: Batch,
}

impl History {
    /// Opens the file, which may take as long as its disk does.
    ///
    /// # Errors
    /// Why it cannot be kept in that file, or the kernel's, if it gives no thread.
    pub fn open(settings: HistorySettings) -> Result<Self> {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let run = format!("{}-{}", std::process::id(), since_1970.as_nanos());
        let store = Store::open(&settings.file, run, settings.kept, settings.zone)?;
        let (queue, jobs) = sync_channel(QUEUED);
        let (messenger, messages) = channel();
        let (going_on, ending) = channel();
        let writer = Writer::new(store, &settings.file, jobs, messenger, ending);
        std::thread::Builder::new().name("history".into()).spawn(|| writer.run()).context("cannot start a thread")?;
        Ok(Self {
            remotes: settings.remotes,
            interval_s: settings.interval_s.clamp(1, 60).into(),
            open: None,
            batches: 0,
            queue: Some(queue),
            messages,
            going_on: Some(going_on),
            notes: Vec::new(),
            sums: Vec::new(),
        })
    }

    /// Adds what has moved since the last tick; nothing in the first one. `remotes` visits the remote ends, if they are to be told
    /// apart, when a batch is complete.
    ///
    /// The bytes count for the minute of the last tick, in which most of them moved.
    pub fn record<'a>(
        &mut self,
        at: SystemTime,
        moved: impl Iterator<Item = Moved<'a>>,
        remotes: &dyn Fn(&mut VisitRemotes<'_>),
    ) {
        let at = seconds(at);
        let Some(open) = &mut self.open else {
            // What the remote ends had moved before.
            let mut batch = Batch::new(at);
            batch.remotes = self.remotes.then(|| settle::snapshot(remotes));
            self.open = Some(OpenMinute { at, batch });
            self.close();
            return;
        };
        for Moved { group, uid, bytes } in moved.filter(|moved| moved.bytes != [0, 0]) {
            let is_known = open.batch.rows.contains_key(&(Arc::clone(group), uid));
            let group = match open.batch.rows.len() < MOST_OPEN || is_known {
                true => Arc::clone(group),
                false => Arc::new(Subject::Others { user: uid }),
            };
            let sum = open.batch.rows.entry((group, uid)).or_default();
            *sum = [sum[0].saturating_add(bytes[0]), sum[1].saturating_add(bytes[1])];
        }
        let slot = |at: i64| (at.div_euclid(60), at.rem_euclid(60) / self.interval_s);
        let is_complete = slot(open.at) != slot(at);
        open.at = at;
        if is_complete {
            if self.remotes && !open.batch.rows.is_empty() {
                open.batch.remotes = Some(settle::snapshot(remotes));
            }
            self.close();
        }
    }

    /// Gives the open batch to the thread. Returns false if the queue is full; then it stays open.
    fn close(&mut self) -> bool {
        let (Some(open), Some(queue)) = (&mut self.open, &self.queue) else { return true };
        if open.batch.rows.is_empty() && open.batch.remotes.is_none() {
            open.batch.at = open.at;
            return true;
        }
        let mut batch = std::mem::replace(&mut open.batch, Batch::new(open.at));
        batch.number = self.batches + 1;
        match queue.try_send(Job::Batch(batch)) {
            Ok(()) => {
                self.batches += 1;
                true
            }
            Err(TrySendError::Full(Job::Batch(batch)) | TrySendError::Disconnected(Job::Batch(batch))) => {
                open.batch = batch;
                false
            }
            Err(_) => false,
        }
    }

    /// Asks for the bytes of each name since a time: all that was recorded up to now. [`sums`](Self::sums) has the answer later.
    /// Returns false if the queue is full.
    pub fn ask_for_sums(&mut self, section: &str, since: i64) -> bool {
        self.close() && self.send(Job::Sums { section: section.to_owned(), since })
    }

    /// Remembers across restarts that the user was told that `name` has used `bytes` of a quota. Returns false if the queue is
    /// full.
    pub fn remember_told(&mut self, section: &str, name: &str, period_start: i64, bytes: u64) -> bool {
        self.send(Job::Told { section: section.to_owned(), name: name.to_owned(), period_start, bytes })
    }

    fn send(&self, job: Job) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.try_send(job).is_ok())
    }

    /// The answers since the last call.
    pub fn sums(&mut self) -> Vec<Sums> {
        self.receive();
        std::mem::take(&mut self.sums)
    }

    /// The messages for the user since the last call, one line each.
    pub fn notes(&mut self) -> Vec<String> {
        self.receive();
        std::mem::take(&mut self.notes)
    }

    fn receive(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            self.take(message);
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Note(note) => self.notes.push(note),
            Message::Sums(sums) => self.sums.push(sums),
        }
    }

    /// Writes what the open minute has, as far as the disk does that within two seconds. Returns the last messages. Nothing is
    /// recorded any more.
    pub fn finish(&mut self) -> Vec<String> {
        let end = Instant::now() + LAST_TIME;
        self.going_on = None;
        let mut is_written = self.close();
        self.queue = None;
        loop {
            match self.messages.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    is_written = false;
                    break;
                }
            }
        }
        if !is_written {
            self.notes.push("the history lacks the last minutes: its disk does not take them in time".to_owned());
        }
        std::mem::take(&mut self.notes)
    }
}

#[cfg(test)]
mod tests;
