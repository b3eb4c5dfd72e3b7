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
    /// The one this thread is in.
    pub fn here() -> Self {
        Self { file: File::open("/proc/thread-self/ns/net").unwrap() }
    }

    /// A new one, whose loopback interface is up.
    pub fn new() -> Self {
        let namespace = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                Self::here()
            });
            thread.join().unwrap()
        });
        namespace.shell("ip link set lo up");
        namespace
    }

    /// Does something in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        // The thread comes back by ending.
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command line in it, and gives what that prints.
    pub fn shell(&self, line: &str) -> String {
        let output = self.run(|| Command::new("sh").args(["-ec", line]).output().unwrap());
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Connects it with another by a cable `name`, with one address of each family at either end.
    pub fn connect(&self, name: &str, ends: [String; 2], other: &Self, other_ends: [String; 2]) {
        let there = format!("/proc/{}/fd/{}", std::process::id(), other.file.as_raw_fd());
        self.shell(&format!("ip link add {name} type veth peer name {name} netns {there}"));
        for (namespace, [v4, v6]) in [(self, ends), (other, other_ends)] {
            namespace.shell(&format!(
                "ip addr add {v4}/30 dev {name}; ip addr add {v6}/126 dev {name} nodad; ip link set {name} up"
            ));
        }
    }
}

/// An address of each family that no other test has at the same time, since a monitor sees all namespaces. Of eight
/// addresses, 1 and 2 are the hosts of one network, 5 and 6 those of another.
///
/// They are of the networks that are set aside for benchmarks, which no host has for anything else: 198.18.0.0/15
/// (RFC 2544) and 2001:2::/48 (RFC 5180).
pub fn address(host: u32) -> [String; 2] {
    let v4 = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + number() * 8 + host);
    [v4.to_string(), format!("2001:2:0:{:x}::{host}", number())]
}

/// This namespace and another that are connected, with the addresses 1 and 2.
pub fn host_and_remote() -> (Namespace, Namespace) {
    let (host, remote) = (Namespace::here(), Namespace::new());
    host.connect("cable", address(1), &remote, address(2));
    // A client's port here is never a server's there, which the true counters go by.
    remote.shell("sysctl -w net.ipv4.ip_local_port_range='10000 19999'");
    host.shell("sysctl -w net.ipv4.ip_local_port_range='20000 29999'");
    (host, remote)
}
