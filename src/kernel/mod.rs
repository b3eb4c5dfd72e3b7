//! Reads the kernel: connections, sockets, processes, namespaces. Each file reads one of the kernel's interfaces. From
//! the rest of the crate, this folder uses only `printable`.
//!
//! In the order in which to read them:
//!
//! | file | its subject | the interface it reads |
//! |---|---|---|
//! | `flow.rs` | the types: protocol, endpoint, tuple, byte counters | |
//! | `netlink.rs` | messages and attributes, and the socket that carries them | netlink(7) |
//! | `conntrack/` | connections with byte counters, as a table and as events | ctnetlink, /proc/net/nf_conntrack |
//! | `sock_diag.rs` | which socket has a tuple; the payload that TCP sockets carry | sock_diag(7) |
//! | `proc_net.rs` | which socket has a tuple, without sock_diag | /proc/net/tcp, udp, ...: proc_pid_net(5) |
//! | `process.rs` | which process holds a socket; its command line, user, cgroup | /proc/\[pid\]/fd, cmdline, stat, cgroup |
//! | `command_line.rs` | the command line of a process, without waiting for that process | /proc/\[pid\]/cmdline |
//! | `namespace.rs` | the network namespaces of processes | /proc/\[pid\]/ns/net |
//! | `addresses.rs` | the addresses in a network namespace | rtnetlink(7) |
//! | `process_events.rs` | each program as it starts | the process events connector |
//! | `bpf/` | the bytes of each socket; the process that made, connected or closed it | bpf(2): programs of ours |
//!
//! Three more files decide where and how a thread runs: `inside.rs` in another network namespace (setns(2)), `affinity.rs`
//! on certain CPUs (sched_setaffinity(2)), `scheduling.rs` with another policy (sched_setscheduler(2)).
//!
//! ```text
//!   conntrack ────────> tuple + bytes
//!                         │ whose?
//!           ┌─────────────┴─────────────┐
//!   bpf: the process            namespace: which one has the address?
//!                                       │
//!                               sock_diag, proc_net: the socket's inode
//!                                       │
//!                               process: the descriptor, and so the process
//! ```
//! Reading is kept apart from parsing: parsers take bytes or text, so that recorded and generated input can test them.
//!
//! Where to read on: [`attribution`](crate::attribution) combines these answers to find the owner of a connection.

pub(crate) mod addresses;
pub(crate) mod affinity;
pub mod bpf;
pub(crate) mod command_line;
pub mod conntrack;
pub mod flow;
pub(crate) mod inside;
pub(crate) mod namespace;
pub mod netlink;
pub(crate) mod proc_net;
pub mod process;
pub mod process_events;
pub(crate) mod scheduling;
pub(crate) mod sock_diag;

/// Whether an error is for want of a descriptor or of memory, of this program or of the host: what was asked for cannot be found out now.
pub(crate) fn is_shortage(error: nix::errno::Errno) -> bool {
    use nix::errno::Errno::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(error, EMFILE | ENFILE | ENOBUFS | ENOMEM)
}
