//! The program that shows the figures of one source: all of runmonitor, and the part of runpipe that shows.

use anyhow::Result;

use super::Program;
use crate::output::{Frame, Moment};
use crate::traffic::rates::{Details, Rates};
use crate::traffic::source::Source;

/// A source, and its figures at the last tick.
#[derive(Debug)]
pub struct OneSource<S> {
    source: S,
    rates: Rates,
    /// The figures of the bytes without an owner at the last tick; `None` unless they are shown.
    unowned: Option<Rates>,
    /// `None` unless details are shown.
    details: Option<Details>,
}

impl<S: Source> OneSource<S> {
    /// Shows what each subject has moved.
    pub fn new(source: S) -> Self {
        Self { source, rates: Rates::new(), unowned: None, details: None }
    }

    /// Also shows the bytes without an owner, by reason.
    pub fn with_unowned(self) -> Self {
        Self { unowned: Some(Rates::new()), ..self }
    }

    /// Also shows what else is known of each subject.
    pub fn with_details(self, details: Details) -> Self {
        Self { details: Some(details), ..self }
    }

    /// The source.
    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }
}

impl<S: Source> Program for OneSource<S> {
    fn tick(&mut self, at: Moment, shown: bool) -> Result<Frame> {
        let mut frame = Frame::at(at);
        let readings = self.source.read(at.monotonic)?;
        if shown {
            (frame.interval, frame.rows) = self.rates.rows(at.monotonic, readings);
            if let Some(details) = &mut self.details {
                details.enter(&mut frame.rows, &self.source, at.monotonic);
            }
            if let Some(unowned) = &mut self.unowned {
                (_, frame.unowned) = unowned.rows(at.monotonic, self.source.unowned());
            }
        }
        frame.notes = self.source.notes();
        frame.facts = self.source.facts();
        Ok(frame)
    }

    fn last_notes(&mut self) -> Vec<String> {
        self.source.last_notes()
    }
}
