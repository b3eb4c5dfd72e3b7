//! Tests that start the programs as their users do. They need no privileges.

#[path = "../common"]
mod common {
    pub mod documents;
    pub mod golden;
    pub mod http;
    pub mod program;
    pub mod runmonitor;
    pub mod user;
    pub mod vectors;
}

mod documents;
mod history;
mod http;
mod json;
mod licences;
mod packaging;
mod runaggregator;
mod runmonitor;
mod runpipe;
mod service;
mod top;
mod unseen;
