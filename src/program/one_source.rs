//! The program that shows one source's figures: runmonitor, and runpipe until it is told to end.

use std::time::Instant;

use anyhow::Result;

use crate::output::text as report;
use crate::program::{Program, Screen};
use crate::traffic::rates::Usage;
use crate::traffic::source::{Reading, Source};

/// A source and what is shown of it.
#[derive(Debug)]
pub struct Figures<S> {
    source: S,
    named: Table,
    /// What nobody owns, below the table of the names.
    unowned: Option<Table>,
}

/// How one table shows readings.
#[derive(Debug)]
enum Table {
    Totals,
    Rates(Usage),
}

impl Table {
    fn lines(&mut self, now: Instant, readings: &[Reading]) -> Vec<u8> {
        match self {
            Self::Totals => report::totals(readings),
            Self::Rates(usage) => report::rates(&usage.rates(now, readings)),
        }
    }
}

impl<S: Source> Figures<S> {
    /// Shows what each name has moved in all.
    pub fn totals(source: S) -> Self {
        Self { source, named: Table::Totals, unowned: None }
    }

    /// Shows what each name moves per second.
    pub fn rates(source: S) -> Self {
        Self { source, named: Table::Rates(Usage::new()), unowned: None }
    }

    /// Shows also what nobody owns, by the reason.
    pub fn with_unowned(self) -> Self {
        let unowned = match self.named {
            Table::Totals => Table::Totals,
            Table::Rates(_) => Table::Rates(Usage::new()),
        };
        Self { unowned: Some(unowned), ..self }
    }

    /// The source.
    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }
}

impl<S: Source> Program for Figures<S> {
    fn tick(&mut self, now: Instant) -> Result<Screen> {
        let mut table = self.named.lines(now, &self.source.read(now)?);
        if let Some(unowned) = &mut self.unowned {
            table.extend(unowned.lines(now, &self.source.unowned()));
        }
        Ok(Screen { table, notes: self.source.notes() })
    }
}
