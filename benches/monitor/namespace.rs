//! Network namespaces for the traffic: made by unshare(2), without a name, so that they end with their last process.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use crate::program::Program;
use crate::roles;

/// Rules that make the kernel track connections: one that reads a connection's state is enough.
const TRACK: &str = "
table inet track {
    chain input { type filter hook input priority 0; ct state invalid counter; }
    chain output { type filter hook output priority 0; ct state invalid counter; }
}";

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace.
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// A new one, with its loopback interface up.
    pub fn new() -> Result<Self> {
        // unshare(2) moves only the calling thread, so use one that ends.
        let made = std::thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            File::open(OWN).context("cannot open a network namespace")
        });
        let namespace = Self { file: made.join().map_err(|_| anyhow!("cannot make a network namespace"))?? };
        namespace.execute("ip link set lo up")?;
        Ok(namespace)
    }

    /// A new one, in which the kernel tracks connections and counts their bytes.
    pub fn tracked() -> Result<Self> {
        let namespace = Self::new()?;
        namespace.track()?;
        Ok(namespace)
    }

    /// Makes the kernel track connections here, and count their bytes.
    pub fn track(&self) -> Result<()> {
        self.nft(TRACK)?;
        let acct = "/proc/sys/net/netfilter/nf_conntrack_acct";
        self.inside(|| fs::write(acct, "1").with_context(|| format!("cannot write {acct}")))?
    }

    /// Undoes [`track`](Self::track).
    pub fn track_no_more(&self) -> Result<()> {
        self.nft("delete table inet track")
    }

    /// Joins two by a veth pair, with the addresses 10.99.0.1 and fd99::1 here and 10.99.0.2 and fd99::2 in the other.
    pub fn join(&self, other: &Self) -> Result<()> {
        let path = format!("/proc/{}/fd/{}", std::process::id(), other.file.as_raw_fd());
        self.execute(&format!("ip link add cable type veth peer name cable netns {path}"))?;
        for (namespace, host) in [(self, 1), (other, 2)] {
            namespace.execute(&format!("ip addr add 10.99.0.{host}/24 dev cable"))?;
            namespace.execute(&format!("ip -6 addr add fd99::{host}/64 dev cable nodad"))?;
            namespace.execute("ip link set cable up")?;
        }
        Ok(())
    }

    /// Calls `action` in this namespace; the processes that it starts and the sockets that it opens stay there.
    pub fn inside<T>(&self, action: impl FnOnce() -> T) -> Result<T> {
        let home = File::open(OWN).context("cannot open a network namespace")?;
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
        let done = action();
        setns(home.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot leave a network namespace")?;
        Ok(done)
    }

    /// Starts a program here.
    pub fn start(&self, command: &mut Command) -> Result<Program> {
        self.inside(|| Program::start(command))?
    }

    /// Starts a [role](crate::roles) here, in a process that monitors see as `name`.
    pub fn play(&self, name: &str, role: &str) -> Result<Program> {
        self.start(&mut roles::command(name, role)?)
    }

    /// Runs a command to its end and returns its output.
    pub fn execute(&self, line: &str) -> Result<String> {
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap_or_default());
        let output = self.inside(|| command.args(words).output())?.with_context(|| format!("cannot run {line}"))?;
        ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Loads nftables rules.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let mut nft = Command::new("nft");
        nft.args(["-f", "-"]).stdin(Stdio::piped());
        let mut nft = self.inside(|| nft.spawn())?.context("cannot run nft")?;
        let mut stdin = nft.stdin.take().context("nft has no stdin")?;
        std::io::Write::write_all(&mut stdin, rules.as_bytes()).context("cannot write to nft")?;
        drop(stdin);
        ensure!(nft.wait()?.success(), "nft refuses: {rules}");
        Ok(())
    }

    /// Makes nftables count the bytes to and from these ports, without conntrack.
    pub fn count_ports(&self, ports: &[u16]) -> Result<()> {
        let each = |line: &dyn Fn(u16) -> String| ports.iter().map(|&port| line(port)).collect::<String>();
        self.nft(&format!(
            "table inet truth {{\n{}
            chain in {{ type filter hook prerouting priority -300;\n{}}}
            chain out {{ type filter hook output priority -300;\n{}}}
            }}",
            each(&|port| format!(
                "counter in-to-{port} {{ }}\ncounter in-from-{port} {{ }}\n\
                 counter out-to-{port} {{ }}\ncounter out-from-{port} {{ }}\n"
            )),
            each(&|port| format!(
                "meta l4proto {{ tcp, udp }} th dport {port} counter name in-to-{port}\n\
                 meta l4proto {{ tcp, udp }} th sport {port} counter name in-from-{port}\n"
            )),
            each(&|port| format!(
                "meta l4proto {{ tcp, udp }} th dport {port} counter name out-to-{port}\n\
                 meta l4proto {{ tcp, udp }} th sport {port} counter name out-from-{port}\n"
            )),
        ))
    }

    /// The bytes counted at a port: in and out for the client, and for the server.
    pub fn counted(&self, port: u16) -> Result<Counted> {
        let counters = self.execute("nft -j list counters table inet truth")?;
        let counters: serde_json::Value = serde_json::from_str(&counters).context("cannot read nft's counters")?;
        let bytes = |name: String| {
            let all = counters["nftables"].as_array().into_iter().flatten();
            let mut named = all.filter(|entry| entry["counter"]["name"] == name);
            named.next().and_then(|entry| entry["counter"]["bytes"].as_u64()).context("nft lacks a counter")
        };
        Ok(Counted {
            client: Bytes { bytes_in: bytes(format!("in-from-{port}"))?, bytes_out: bytes(format!("out-to-{port}"))? },
            server: Bytes { bytes_in: bytes(format!("in-to-{port}"))?, bytes_out: bytes(format!("out-from-{port}"))? },
        })
    }

    /// The number of connections that conntrack tracks here.
    pub fn tracked_connections(&self) -> Result<usize> {
        let count = "/proc/sys/net/netfilter/nf_conntrack_count";
        let text = self.inside(|| fs::read_to_string(count))?.with_context(|| format!("cannot read {count}"))?;
        text.trim().parse().with_context(|| format!("no number in {count}: {text}"))
    }
}

/// The bytes that an application has moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Bytes {
    pub fn since(self, earlier: Self) -> Self {
        Self {
            bytes_in: self.bytes_in.saturating_sub(earlier.bytes_in),
            bytes_out: self.bytes_out.saturating_sub(earlier.bytes_out),
        }
    }

    pub fn sum(self) -> u64 {
        self.bytes_in + self.bytes_out
    }

    /// The part of `truth` that this reports; a figure above the truth counts only as the truth.
    pub fn of(self, truth: Self) -> u64 {
        self.bytes_in.min(truth.bytes_in) + self.bytes_out.min(truth.bytes_out)
    }

    /// The absolute difference from `truth`, in and out added up.
    pub fn error(self, truth: Self) -> u64 {
        self.bytes_in.abs_diff(truth.bytes_in) + self.bytes_out.abs_diff(truth.bytes_out)
    }
}

/// The bytes counted at a server's port.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    pub client: Bytes,
    pub server: Bytes,
}

impl Counted {
    pub fn since(self, earlier: Self) -> Self {
        Self { client: self.client.since(earlier.client), server: self.server.since(earlier.server) }
    }
}
