//! How much network traffic each application on a Linux host uses.
//!
//! The binaries runmonitor, runpipe and runaggregator only parse a command line and [`run`](program::run) one of the
//! programs here. Once a second, in a *tick*, a program reads its sources. A [`Source`](traffic::source::Source)
//! returns the total bytes of each [`Subject`](traffic::subject::Subject), such as the processes with one command line:
//! a [`Monitor`](monitor::Monitor) combines the kernel's counters with the owners of the connections, a
//! [`Pipe`](pipe::Pipe) counts the bytes that it delivers. The program adds these readings up to
//! [applications](grouping), turns them into [rates](traffic::rates) and checks [thresholds](notify). The result of a
//! tick is a [`Frame`](output::Frame), which an [`Output`](output::Output) shows.
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
//! In the order in which to read them. A module imports only modules below its own line; ARCHITECTURE.md has the
//! picture and explains the terms.
//!
//! - [`program`]: the loop, and the three programs that it runs.
//! - [`monitor`]: one tick of counting per process, with a file for each [source of counters](monitor::counters).
//! - [`config`]: from configuration files to settings, with a diagnostic for each mistake.
//! - [`web`]: the figures over HTTP: a live page, JSON, and metrics for Prometheus.
//! - [`ledger`]: the bytes of each flow, the owners of its two ends, and the bytes of each subject.
//! - [`grouping`]: which subjects form one application.
//! - [`history`]: the bytes of minutes, hours, days and months, in a file.
//! - [`notify`]: which application exceeds a threshold, and the commands that then run.
//! - [`attribution`]: which process owns an end of a connection.
//! - [`python2`]: the dialects of Python 2 in files and patterns, each tested against recordings of the original.
//! - [`pipe`]: the TCP forwarder.
//! - [`output`]: one tick as data, and the ways to show it.
//! - [`kernel`]: the kernel's interfaces, one file for each.
//! - [`traffic`]: the types between counting and showing.
//! - [`workload`]: the service, container and user that a process works for, from its cgroup and from files.
//! - [`calendar`]: when hours, days, weeks and months begin.
//! - [`printable`]: makes text from outside safe to print.
//! - [`privileges`]: the rights that the programs and each of their threads keep.

pub mod attribution;
pub mod calendar;
pub mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod grouping;
pub mod history;
pub mod kernel;
pub mod ledger;
pub mod monitor;
pub mod notify;
pub mod output;
pub mod pipe;
pub mod printable;
pub mod privileges;
pub mod program;
pub mod python2;
pub mod traffic;
pub mod web;
pub mod workload;
