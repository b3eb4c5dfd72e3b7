//! Tests of the library's modules that need no privileges, no tool and no network but loopback.

#[path = "../common"]
mod common {
    pub mod fake_proc;
    pub mod loopback;
    pub mod net_tables;
    pub mod user;
    pub mod vectors;
}

mod aggregator;
mod conntrack;
mod monitor;
mod notification_command;
mod owners;
mod pattern;
mod pipe;
mod pipe_random;
mod pipeline;
