//! The program that shows one source's figures: runmonitor, and runpipe until it is told to end.

use std::time::Instant;

use anyhow::Result;

use crate::report;
use crate::run::{Program, Screen};
use crate::source::Source;
use crate::usage::Usage;

/// A source and what is shown of it.
#[derive(Debug)]
pub struct Figures<S> {
    source: S,
    /// `None` to show totals.
    usage: Option<Usage>,
}

impl<S: Source> Figures<S> {
    /// Shows what each name has moved in all.
    pub fn totals(source: S) -> Self {
        Self { source, usage: None }
    }

    /// Shows what each name moves per second.
    pub fn rates(source: S) -> Self {
        Self { source, usage: Some(Usage::new()) }
    }

    /// The source.
    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }
}

impl<S: Source> Program for Figures<S> {
    fn tick(&mut self, now: Instant) -> Result<Screen> {
        let readings = self.source.read(now)?;
        let table = match &mut self.usage {
            None => report::totals(&readings),
            Some(usage) => report::rates(&usage.rates(now, &readings)),
        };
        Ok(Screen { table, notes: self.source.notes() })
    }
}
