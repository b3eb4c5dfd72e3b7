//! The thread that writes the history. It alone waits for the disk.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Sums;
use super::schema::name;
use super::settle::{Batch, Settling};
use super::store::{Minute, Store};
use crate::privileges::{Duty, keep_for};
use crate::workload::names::Names;

/// How long it waits after a failure before it tries again.
const RETRY: Duration = Duration::from_secs(5);

/// What the thread does, in the order in which it was asked.
#[derive(Debug)]
pub(super) enum Job {
    /// Writes a batch.
    Batch(Batch),
    /// Reads the sums since a time.
    Sums { section: String, since: i64 },
    /// Remembers that the user was told of a quota.
    Told { section: String, name: String, period_start: i64, bytes: u64 },
}

/// What the program gets from the thread.
#[derive(Debug)]
pub(super) enum Message {
    Note(String),
    Sums(Sums),
}

pub(super) struct Writer {
    store: Store,
    path: PathBuf,
    jobs: Receiver<Job>,
    messages: Sender<Message>,
    ending: Receiver<()>,
    names: Names,
    settling: Settling,
    /// The failure that the user knows of.
    failure: Option<String>,
}

/// A job of which the part that needs no disk is done: it can be tried again.
enum Step {
    Write(Minute),
    Sums { section: String, since: i64 },
    Told { section: String, name: String, period_start: i64, bytes: u64 },
}

impl Writer {
    pub(super) fn new(
        store: Store,
        path: &Path,
        jobs: Receiver<Job>,
        messages: Sender<Message>,
        ending: Receiver<()>,
    ) -> Self {
        let (path, names) = (path.to_owned(), Names::new());
        Self { store, path, jobs, messages, ending, names, settling: Settling::default(), failure: None }
    }

    /// Works until the program ends.
    pub(super) fn run(mut self) {
        keep_for(Duty::Recording(&self.path));
        while let Ok(job) = self.jobs.recv() {
            let step = match job {
                Job::Batch(batch) => Step::Write(self.settling.settle(batch)),
                Job::Sums { section, since } => Step::Sums { section, since },
                Job::Told { section, name, period_start, bytes } => Step::Told { section, name, period_start, bytes },
            };
            while !self.is_done(&step) {
                if self.ending.recv_timeout(RETRY) == Err(RecvTimeoutError::Disconnected) {
                    break;
                }
            }
        }
    }

    fn is_done(&mut self, step: &Step) -> bool {
        match self.take(step).with_context(|| format!("cannot write the history in {}", name(&self.path))) {
            Ok(()) => {
                if self.failure.take().is_some() {
                    self.note("the history is written again".to_owned());
                }
                true
            }
            Err(error) => {
                let failure = format!("{error:#}");
                if self.failure.as_ref() != Some(&failure) {
                    self.note(format!("{failure}; it is tried again, and all else goes on"));
                    self.failure = Some(failure);
                }
                false
            }
        }
    }

    fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Write(minute) if minute.rows.is_empty() => {}
            Step::Write(minute) => {
                self.names.refresh();
                if self.store.write(minute, |uid| self.names.user(uid))? {
                    self.note(format!("the history in {} was gone; a new one begins", name(&self.path)));
                }
            }
            Step::Sums { section, since } => {
                let (bytes, told) = self.store.sums_since(*since, section)?;
                self.send(Message::Sums(Sums { section: section.clone(), since: *since, bytes, told }));
            }
            Step::Told { section, name, period_start, bytes } => {
                self.store.told(section, name, *period_start, *bytes)?;
            }
        }
        Ok(())
    }

    fn note(&self, note: String) {
        self.send(Message::Note(note));
    }

    /// If nobody takes it, the program has ended.
    fn send(&self, message: Message) {
        let _ = self.messages.send(message);
    }
}
