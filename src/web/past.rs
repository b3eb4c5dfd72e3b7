//! What the page shows of the history: charts of ranges of time, which a thread reads while the server goes on.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use nix::sys::eventfd::EventFd;

use super::request::Status;
use super::site::{JSON, Response, TEXT};
use crate::history::chart::Chart;
use crate::printable::printable;

/// How long a chart stays as it was read: the history is written once a minute.
const FRESH: Duration = Duration::from_secs(20);
/// The most charts that are remembered.
const MOST_CHARTS: usize = 8;
/// The columns of the message that a chart cannot be read.
const MESSAGE_WIDTH: usize = 400;

/// A range of time, in seconds since 1970: from its first moment to the one after its last.
pub type Range = (i64, i64);

/// The charts of a history.
pub struct Past {
    file: PathBuf,
    /// Wakes the server when a chart has been read.
    wakeup: Arc<EventFd>,
    charts: VecDeque<(Range, Instant, Response)>,
    /// The one that is being read; one at a time, however many clients ask.
    reading: Option<(Range, Receiver<Response>)>,
}

impl Past {
    /// Those of the history in `file`.
    pub fn new(file: PathBuf, wakeup: Arc<EventFd>) -> Self {
        Self { file, wakeup, charts: VecDeque::new(), reading: None }
    }

    /// The chart of a range as JSON; `None` as long as it is read.
    pub fn answer(&mut self, range: Range, now: Instant) -> Option<Response> {
        if let Some((range, reading)) = &self.reading {
            match reading.try_recv() {
                Ok(response) => {
                    self.charts.push_back((*range, now, response));
                    self.charts.drain(..self.charts.len().saturating_sub(MOST_CHARTS));
                    self.reading = None;
                }
                Err(TryRecvError::Disconnected) => self.reading = None,
                Err(TryRecvError::Empty) => {}
            }
        }
        self.charts.retain(|(_, at, _)| now.saturating_duration_since(*at) < FRESH);
        if let Some((.., response)) = self.charts.iter().find(|(known, ..)| *known == range) {
            return Some(response.clone());
        }
        if self.reading.is_none() && !self.read(range) {
            return Some(Response::of(Status::Unavailable));
        }
        None
    }

    /// Begins to read a chart. Returns false if there is no thread for that.
    fn read(&mut self, range: Range) -> bool {
        let (sender, receiver) = channel();
        let (file, wakeup) = (self.file.clone(), Arc::clone(&self.wakeup));
        let read = move || {
            let chart = Chart::read(&file, range.0, range.1, &TimeZone::system());
            let response = match chart.and_then(|chart| Ok(serde_json::to_vec(&chart)?)) {
                Ok(body) => Response::new(Status::Ok, JSON, body),
                Err(error) => {
                    let message = printable(format!("{error:#}").as_bytes(), MESSAGE_WIDTH);
                    Response::new(Status::Unavailable, TEXT, message)
                }
            };
            // If nobody takes it, the server has ended.
            let _ = sender.send(response);
            let _ = wakeup.write(1);
        };
        let is_started = std::thread::Builder::new().name("http-history".into()).spawn(read).is_ok();
        self.reading = is_started.then_some((range, receiver));
        is_started
    }
}
