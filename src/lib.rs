//! Which application on a Linux host uses how much network traffic.
//!
//! The programs runmonitor, runpipe and runaggregator are thin: they take a command line apart and [`run`](program::run) one
//! of the programs here. What counts is a [`Source`](traffic::source::Source): a [`Monitor`](monitor::Monitor), which joins the
//! kernel's counters with the owners of the connections, or a [`Pipe`](pipe::Pipe), which counts what it carries. Its
//! readings become [rates](traffic::rates), [applications](grouping), [notifications](notify) and [text](output::text).
//!
//! ```no_run
//! use std::time::Instant;
//! use bwmon::ledger::Selection;
//! use bwmon::monitor::{Monitor, MonitorSettings};
//! use bwmon::traffic::source::Source;
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut monitor = Monitor::of_this_host(MonitorSettings { selections: vec![Selection::default()], ..MonitorSettings::default() })?;
//! for reading in monitor.read(Instant::now())? {
//!     println!("{} {} {}", reading.bytes_in, reading.bytes_out, String::from_utf8_lossy(&reading.subject.label()));
//! }
//! # Ok(())
//! # }
//! ```

pub mod attribution;
pub mod config;
pub mod grouping;
pub mod kernel;
pub mod ledger;
pub mod monitor;
pub mod notify;
pub mod output;
pub mod pipe;
pub mod printable;
pub mod program;
pub mod python2;
pub mod traffic;
