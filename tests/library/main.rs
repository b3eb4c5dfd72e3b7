//! Tests of the library's modules that need no privileges, no tool and no network but loopback.

#[path = "../common"]
mod common {
    pub mod program;
    pub mod silent;
    pub mod user;
    pub mod vectors;
}

mod aggregator;
mod conntrack;
mod container_names;
mod fake_proc;
mod history;
mod loopback;
mod monitor;
mod net_tables;
mod notification_command;
mod owners;
mod pattern;
mod pipe;
mod pipe_changes;
mod pipe_random;
mod pipeline;
mod sockets;
mod sums;
mod workload;
