//! The types between counting and showing: how many bytes each subject has moved.
//!
//! ```text
//! monitor, pipe ──▶ Source::read ──▶ Vec<Reading> ──▶ Rates::rows ──▶ Vec<Row> ──▶ output::Frame
//!                                    totals                           totals and what moved in this tick
//! ```
//! Where to read on: [`subject`] is what bytes are credited to; [`source`] is the interface between counting and
//! showing; [`detail`] is what else is known of a subject, [`interest`] who wants it, and [`host_names`] looks the names of its
//! remote ends up; [`rates`] takes the differences from one tick to the next; `rounds` limits what is remembered of silent subjects.

pub mod detail;
pub mod host_names;
pub mod interest;
pub mod rates;
pub(crate) mod rounds;
pub mod source;
pub mod subject;
