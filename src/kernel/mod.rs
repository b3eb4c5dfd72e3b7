//! What the kernel says: connection tracking, sockets, processes, namespaces, BPF. Knows nothing of the rest.

pub mod bpf;
pub mod conntrack;
pub mod exec_events;
pub mod flow;
pub mod namespace;
pub mod netlink;
pub mod proc_net;
pub mod process;
pub mod sock_diag;
