//! What the counting side hands to the showing side: how many bytes each subject has moved.
//!
//! ```text
//! monitor, pipe ──▶ Source::read ──▶ Vec<Reading> ──▶ Rates::rows ──▶ Vec<Row> ──▶ output::Frame
//!                                    totals                           totals and what moved in this tick
//! ```
//! [`subject`] says what bytes are credited to, [`source`] is the joint between counting and showing, [`rates`] takes the
//! differences from one tick to the next, `rounds` bounds what is remembered of subjects that have gone silent.

pub mod rates;
pub(crate) mod rounds;
pub mod source;
pub mod subject;
