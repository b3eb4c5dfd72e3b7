//! BPF programs.
pub mod tcp_owners;
