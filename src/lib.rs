//! Which application on a Linux host uses how much network traffic.
//!
//! The programs runmonitor, runpipe and runaggregator are thin: they take a command line apart and [`run`](run::run) one
//! of the programs here. What counts is a [`Source`](source::Source): a [`Monitor`](monitor::Monitor), which joins the
//! kernel's counters with the owners of the connections, or a [`Pipe`](pipe::Pipe), which counts what it carries. Its
//! readings become [rates](usage), [applications](aggregator), [notifications](notify) and [text](report).
//!
//! ```no_run
//! use std::time::Instant;
//! use bwmon::ledger::Selection;
//! use bwmon::monitor::{Monitor, Settings};
//! use bwmon::source::Source;
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut monitor = Monitor::of_this_host(Settings { selections: vec![Selection::default()], ..Settings::default() })?;
//! for reading in monitor.read(Instant::now())? {
//!     println!("{} {} {}", reading.bytes_in, reading.bytes_out, String::from_utf8_lossy(&reading.name));
//! }
//! # Ok(())
//! # }
//! ```

pub mod aggregator;
pub mod aggregator_program;
pub mod cli;
pub mod config;
pub mod connects;
pub mod conntrack;
pub mod execs;
pub mod figures;
pub mod filter;
pub mod flow;
pub mod ini;
pub mod ledger;
pub mod monitor;
pub mod namespace;
pub mod netlink;
pub mod notify;
pub mod number;
pub mod owner;
pub mod pattern;
pub mod pipe;
pub mod pipe_program;
pub mod process;
pub mod report;
pub mod run;
pub mod shlex;
pub mod sock_diag;
pub mod source;
pub mod usage;
pub mod watch;
