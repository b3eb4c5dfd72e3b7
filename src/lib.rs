//! Which application on a Linux host uses how much network traffic.

pub mod aggregator;
pub mod config;
pub mod connects;
pub mod conntrack;
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
