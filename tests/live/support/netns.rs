//! Network namespaces, and cables between them.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

use super::machine::number;

/// A network namespace.
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// The namespace of this thread.
    pub fn here() -> Self {
        Self { file: File::open("/proc/thread-self/ns/net").unwrap() }
    }

    /// A new namespace, whose loopback interface is up.
    pub fn new() -> Self {
        let namespace = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                Self::here()
            });
            thread.join().unwrap()
        });
        // Without packets of GSO each packet has its own headers, and nft counts what passes the wire.
        namespace.shell("ip link set lo up gso_max_segs 1");
        namespace
    }

    /// Calls `work` in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        // setns(2) moves a thread, which is not needed afterwards.
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command line in it. Returns its stdout.
    pub fn shell(&self, line: &str) -> String {
        let output = self.run(|| Command::new("sh").args(["-ec", line]).output().unwrap());
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Connects it with another by a veth pair, both ends called `name`, with an address of each family at either end.
    pub fn connect(&self, name: &str, ends: [String; 2], other: &Self, other_ends: [String; 2]) {
        let there = format!("/proc/{}/fd/{}", std::process::id(), other.file.as_raw_fd());
        self.shell(&format!("ip link add {name} type veth peer name {name} netns {there}"));
        for (namespace, [v4, v6]) in [(self, ends), (other, other_ends)] {
            namespace.shell(&format!(
                "ip addr add {v4}/30 dev {name}; ip addr add {v6}/126 dev {name} nodad; ip link set {name} up gso_max_segs 1"
            ));
        }
    }
}

/// An address of each family that no other test has at the same time, since a monitor of root sees all namespaces. Each
/// test has eight: 1 and 2 are the hosts of one network, 5 and 6 those of another.
///
/// They are from the networks that are reserved for benchmarks, so that a host has them for nothing else: 198.18.0.0/15
/// (RFC 2544) and 2001:2::/48 (RFC 5180).
pub fn address(host: u32) -> [String; 2] {
    let v4 = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + number() * 8 + host);
    [v4.to_string(), format!("2001:2:0:{:x}::{host}", number())]
}

/// This namespace and a new one, connected, with the addresses 1 and 2.
pub fn host_and_remote() -> (Namespace, Namespace) {
    let (host, remote) = (Namespace::here(), Namespace::new());
    host.connect("cable", address(1), &remote, address(2));
    // No client's port is a server's at the other end: the counters of the truth go by the server's port.
    remote.shell("sysctl -w net.ipv4.ip_local_port_range='10000 19999'");
    host.shell("sysctl -w net.ipv4.ip_local_port_range='20000 29999'");
    (host, remote)
}
