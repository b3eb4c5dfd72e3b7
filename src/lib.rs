//! Which application on a Linux host uses how much network traffic.
//!
//! The programs runmonitor, runpipe and runaggregator are thin: they parse a command line and [`run`](program::run) one of
//! the programs here. A [`Source`](traffic::source::Source) counts: a [`Monitor`](monitor::Monitor), which joins the kernel's
//! counters with the owners of the connections, or a [`Pipe`](pipe::Pipe), which counts what it carries. Its readings become
//! [rates](traffic::rates), [applications](grouping) and [notifications](notify); all of a tick is a
//! [`Frame`](output::Frame), which an [`Output`](output::Output) shows.
//!
//! ```no_run
//! use std::time::Instant;
//! use bwmon::ledger::Selection;
//! use bwmon::monitor::{Monitor, MonitorSettings};
//! use bwmon::traffic::source::Source;
//!
//! # fn main() -> anyhow::Result<()> {
//! let settings = MonitorSettings { selections: vec![Selection::default()], ..MonitorSettings::default() };
//! let mut monitor = Monitor::of_this_host(settings)?;
//! for reading in monitor.read(Instant::now())? {
//!     println!("{} {} {}", reading.bytes_in, reading.bytes_out, String::from_utf8_lossy(&reading.subject.label()));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//!
//! In the order in which to read them. A module imports only modules below its own line; ARCHITECTURE.md has the picture.
//!
//! - [`program`]: the loop of a tick, and the three programs that it runs.
//! - [`monitor`]: one tick of counting per process; the joint [`CounterSource`](monitor::counters) with a file per source.
//! - [`config`]: from configuration files to settings, with a diagnostic for everything that is wrong.
//! - [`ledger`]: the books: which flow carried how much, who owns its ends, what each subject has moved.
//! - [`grouping`]: what counts as one application.
//! - [`notify`]: which application exceeds a threshold, and the commands that then run.
//! - [`attribution`]: whose end of a connection this is.
//! - [`python2`]: the dialects of old configuration files and patterns, each held to recordings of the original.
//! - [`pipe`]: the TCP forwarder.
//! - [`output`]: one tick as data, and the ways to show it.
//! - [`kernel`]: what the kernel says, one file per interface.
//! - [`traffic`]: what the counting side hands to the showing side.
//! - [`printable`]: foreign text made safe to show.

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
