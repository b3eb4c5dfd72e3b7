//! The program that shows the figures of one source: all of runmonitor, and the part of runpipe that shows.

use anyhow::Result;

use super::cli::Showing;
use super::recording::Recording;
use super::{Program, top};
use crate::grouping::GroupBy;
use crate::output::json::{Json, Named};
use crate::output::text::{Figures, Text};
use crate::output::top::Top;
use crate::output::{Frame, Moment, Output};
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
    recording: Option<Recording>,
}

/// How processes, or what they are grouped by, are shown: with `top`, in the interactive view; `rates`: with rates instead of totals;
/// `is_filtered`: when only some of them are.
///
/// # Errors
/// Those of [`Top::new`].
pub fn output(
    showing: &Showing,
    top: bool,
    rates: bool,
    group_by: GroupBy,
    is_filtered: bool,
) -> Result<Box<dyn Output>> {
    if top {
        return Ok(Box::new(Top::new(top::processes(group_by))?));
    }
    if showing.json {
        return Ok(Box::new(Json::new(Named::Group(group_by.name()))));
    }
    let (one, several) = group_by.nouns();
    let text = Text::new(if rates { Figures::Rates } else { Figures::Totals }).of(one, several).wide(showing.wide);
    let text = text.with_idle_note("nothing to show yet: no process that matches has moved a byte");
    let nothing = "Nothing that matches has moved a byte yet.";
    Ok(Box::new(if is_filtered { text.with_nothing(nothing) } else { text }))
}

impl<S: Source> OneSource<S> {
    /// Shows what each subject has moved.
    pub fn new(source: S) -> Self {
        Self { source, rates: Rates::new(), unowned: None, details: None, recording: None }
    }

    /// Also shows the bytes without an owner, by reason, if they are `shown`.
    pub fn with_unowned(self, shown: bool) -> Self {
        Self { unowned: shown.then(Rates::new), ..self }
    }

    /// Also shows what else is known of each subject, if that is shown.
    pub fn with_details(self, details: Option<Details>) -> Self {
        Self { details, ..self }
    }

    /// Also records what moves, if there is a history.
    pub fn with_recording(self, recording: Option<Recording>) -> Self {
        Self { recording, ..self }
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
        if let Some(recording) = &mut self.recording {
            recording.tick(at, &self.source, &readings);
            frame.notes = recording.history().notes();
        }
        if shown {
            (frame.interval, frame.rows) = self.rates.rows(at.monotonic, readings);
            if let Some(details) = &mut self.details {
                details.enter(&mut frame.rows, &self.source, at.monotonic);
            }
            if let Some(unowned) = &mut self.unowned {
                (_, frame.unowned) = unowned.rows(at.monotonic, self.source.unowned());
            }
        }
        frame.notes.extend(self.source.notes());
        frame.facts = self.source.facts();
        Ok(frame)
    }

    fn last_notes(&mut self) -> Vec<String> {
        let mut notes = self.source.last_notes();
        notes.extend(self.recording.as_mut().into_iter().flat_map(|recording| recording.history().finish()));
        notes
    }

    fn works_unseen(&mut self) -> bool {
        self.recording.is_some()
    }
}
