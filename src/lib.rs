//! How much network traffic each application on a Linux host uses.
//!
//! # How it works
//!
//! Once a second, in a *tick*, a program reads its sources, and shows what they have counted.
//!
//! ```text
//! the kernel's counters, and the owners of connections ──▶ Monitor ─┐
//! what a forwarder has delivered ─────────────────────────▶ Pipe ───┤ each a Source of
//! your own counters ───────────────────────▶ your own Source ──────┘ Readings: the total bytes of each Subject
//!                                                  │
//!              Aggregator: applications ◀──────────┤ or the subjects as they are
//!                                 └───────────────▶│
//!                                                  ▼
//!              Rates: the bytes that each Subject has moved since the last tick, as Rows
//!                                                  │
//!                          a Frame: one tick as data ──▶ an Output: text, JSON, your own
//! ```
//!
//! # Three ways in
//!
//! 1. **The bytes of each process, pipe or application**, read whenever you like: make a [`Monitor`](monitor::Monitor), a
//!    [`Pipe`](pipe::Pipe) or an [`Aggregator`](grouping::Aggregator) over several of them, and call
//!    [`Source::read`](traffic::source::Source::read) about once a second. [`Rates`](traffic::rates::Rates) takes the differences.
//! 2. **A program with an output of your own**: implement [`Output`](output::Output) and give it to [`run`](program::run), bwmon's
//!    own loop, with its signals, schedule and reduced rights.
//! 3. **Single facts about the kernel**: the [connection table](kernel::conntrack::Table), the
//!    [sockets](kernel::sock_diag::SockDiag), and the [processes that hold them](attribution::per_tick::TickLookup).
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
//! The programs in `examples/` begin where these lines end; `cargo run --example NAME` runs one, and the tests run them all:
//!
//! | example | what it shows |
//! |---|---|
//! | `top.rs` | the command lines that move the most bytes, once a second |
//! | `conntrack.rs` | the connection table |
//! | `owners.rs` | which process has which socket |
//! | `pipe.rs` | a port that is forwarded, and its bytes |
//! | `interfaces.rs` | a source of one's own, in an aggregator with the applications of a configuration file |
//! | `influx.rs` | an output of one's own, in bwmon's loop |
//!
//! # What is stable
//!
//! Versions follow [semantic versioning](https://semver.org). What the programs take and print is stable: command lines,
//! configuration files, lines of text, JSON records, metrics, and the history's tables. In the library, that is so for the types of
//! the first two ways in: [`traffic`], [`monitor::Monitor`], [`pipe::Pipe`], [`grouping`], [`ledger::Selection`],
//! [`output::Output`] and [`program::run`], with all that they take and return. Settings may get new fields with a minor version:
//! end them with `..MonitorSettings::default()` or `..PipeSettings::new(…)`. All else that is public is for the programs, tests and
//! benchmarks of this package and for the curious, and may change with any version.
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
//! - `printable`: makes text from outside safe to print.
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
pub(crate) mod printable;
pub mod privileges;
pub mod program;
pub mod python2;
pub mod traffic;
pub mod web;
pub mod workload;
