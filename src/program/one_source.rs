//! The program that shows the figures of one source: runmonitor, and runpipe until it is told to end.

use anyhow::Result;

use super::Program;
use crate::output::{Frame, Moment};
use crate::traffic::rates::Rates;
use crate::traffic::source::Source;

/// A source, and what its figures were at the tick before.
#[derive(Debug)]
pub struct OneSource<S> {
    source: S,
    rates: Rates,
    /// The same of what has no owner, if it is shown.
    unowned: Option<Rates>,
}

impl<S: Source> OneSource<S> {
    /// Shows what each subject has moved.
    pub fn new(source: S) -> Self {
        Self { source, rates: Rates::new(), unowned: None }
    }

    /// Shows also what has no owner, by the reason.
    pub fn with_unowned(self) -> Self {
        Self { unowned: Some(Rates::new()), ..self }
    }

    /// The source.
    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }
}

impl<S: Source> Program for OneSource<S> {
    fn tick(&mut self, at: Moment) -> Result<Frame> {
        let mut frame = Frame::at(at);
        (frame.interval, frame.rows) = self.rates.rows(at.monotonic, self.source.read(at.monotonic)?);
        if let Some(unowned) = &mut self.unowned {
            (_, frame.unowned) = unowned.rows(at.monotonic, self.source.unowned());
        }
        frame.notes = self.source.notes();
        frame.facts = self.source.facts();
        Ok(frame)
    }
}
