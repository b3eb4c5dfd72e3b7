//! runpipe beside other TCP forwarders: `cargo bench --bench pipe`, or only some of them with `-- NAME...`.
//!
//! Measures the forwarders one after the other, three times, and prints the medians: throughput and CPU seconds per GB
//! with 1 and 8 streams, connections per second and CPU per connection, and the round trip of one byte. Then, once, the
//! memory of 8,000 open connections, and how close runpipe comes to a limit. The bytes go from threads of this program
//! to other threads of it; `direct` is without a forwarder. socat, HAProxy and rinetd are measured where they are
//! installed.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::linger;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{setsockopt, sockopt::Linger};
use nix::unistd::{Pid, SysconfVar, sysconf};

const ROUNDS: usize = 3;
const SECONDS: f64 = 2.0;
const HELD: usize = 8000;
const LIMIT_KB_PER_S: u64 = 10 * 1024;

/// A forwarder to measure, and its command line: from `port` to `target`, both of 127.0.0.1.
struct Peer {
    name: &'static str,
    command: fn(port: u16, target: u16) -> Vec<String>,
}

const PEERS: [Peer; 4] = [
    Peer {
        name: "runpipe",
        command: |port, target| words(&format!("{} {port} 127.0.0.1 {target}", env!("CARGO_BIN_EXE_runpipe"))),
    },
    Peer {
        name: "socat",
        command: |port, target| {
            words(&format!("socat -b65536 TCP-LISTEN:{port},fork,reuseaddr,backlog=4096 TCP:127.0.0.1:{target}"))
        },
    },
    Peer {
        name: "haproxy",
        command: |port, target| {
            let text = format!(
                "global\n maxconn 9000\n maxpipes 500\n nbthread 1\ndefaults\n mode tcp\n option splice-request\n option splice-response\n \
                 timeout connect 5s\n timeout client 1h\n timeout server 1h\nlisten l\n bind :{port}\n \
                 server s 127.0.0.1:{target}\n"
            );
            vec!["haproxy".into(), "-db".into(), "-f".into(), config("haproxy", &text)]
        },
    },
    Peer {
        name: "rinetd",
        command: |port, target| {
            let text = format!("0.0.0.0 {port} 127.0.0.1 {target}\n");
            vec!["rinetd".into(), "-f".into(), "-c".into(), config("rinetd", &text)]
        },
    },
];

fn words(command: &str) -> Vec<String> {
    command.split(' ').map(String::from).collect()
}

/// Writes a configuration file and returns its path.
fn config(name: &str, text: &str) -> String {
    let path = std::env::temp_dir().join(format!("bwmon-bench-{}-{name}.cfg", std::process::id()));
    fs::write(&path, text).expect("write a configuration");
    path.display().to_string()
}

/// A running forwarder, with all its processes.
struct Forwarder(Child);

impl Forwarder {
    fn start(command: &[String], port: u16) -> Option<Self> {
        let child = Command::new(&command[0])
            .args(&command[1..])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .ok()?;
        let forwarder = Self(child);
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                // The forwarder may still be busy with this connection.
                thread::sleep(Duration::from_millis(100));
                return Some(forwarder);
            }
            thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// The CPU seconds that all its processes have taken so far, including their children that have ended.
    fn cpu_s(&self) -> f64 {
        let ticks: u64 = processes(self.0.id()).map(|stat| stat[11..15].iter().sum::<u64>()).sum();
        ticks as f64 / sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64
    }

    /// The resident memory of all its processes, in bytes.
    fn memory_bytes(&self) -> u64 {
        processes(self.0.id()).map(|stat| stat[21] * 4096).sum()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.0.id() as i32), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// The fields of /proc/PID/stat after the name, for each process of a group (proc(5): index 2 is field 5, pgrp).
fn processes(group: u32) -> impl Iterator<Item = Vec<u64>> {
    let entries = fs::read_dir("/proc").expect("read /proc").flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter_map(move |stat| {
        let numbers: Vec<u64> =
            stat.rsplit_once(") ")?.1.split(' ').map(|field| field.trim().parse().unwrap_or(0)).collect();
        (numbers.get(2) == Some(&u64::from(group))).then_some(numbers)
    })
}

/// A server that sends each byte of a connection back, or discards and counts the bytes that come.
struct TargetServer {
    port: u16,
    discarded: Arc<AtomicU64>,
}

impl TargetServer {
    fn start(echo: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("own address").port();
        let discarded = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&discarded);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = Arc::clone(&count);
                let serve = move || if echo { echo_bytes(&stream) } else { discard(&stream, &count) };
                // A small stack, since there will be thousands of threads.
                let _ = thread::Builder::new().stack_size(256 << 10).spawn(serve);
            }
        });
        Self { port, discarded }
    }
}

fn echo_bytes(mut stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut byte = [0];
    while let Ok(1) = stream.read(&mut byte) {
        if stream.write_all(&byte).is_err() {
            return;
        }
    }
}

fn discard(mut stream: &TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 1 << 17];
    while let Ok(read) = stream.read(&mut buffer) {
        if read == 0 {
            return;
        }
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
}

/// The bytes per second, and the bytes, that arrive while `streams` connections send as fast as they can.
fn throughput(port: u16, target: &TargetServer, streams: usize, seconds: f64) -> (f64, u64) {
    let stop = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..streams)
        .map(|_| {
            let stop = Arc::clone(&stop);
            let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
            thread::spawn(move || {
                let block = vec![b'x'; 1 << 17];
                while !stop.load(Ordering::Relaxed) && stream.write_all(&block).is_ok() {}
                let _ = stream.shutdown(Shutdown::Both);
            })
        })
        .collect();
    let (before, start) = (target.discarded.load(Ordering::Relaxed), Instant::now());
    thread::sleep(Duration::from_secs_f64(seconds));
    let bytes = target.discarded.load(Ordering::Relaxed) - before;
    let rate = bytes as f64 / start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    senders.into_iter().for_each(|sender| drop(sender.join()));
    (rate, bytes)
}

/// Connects, exchanges one byte and resets, again and again in 16 threads; returns the number of connections.
fn connections(port: u16, seconds: f64) -> u64 {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let once = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        // A reset leaves no TIME_WAIT; otherwise the ports would run out.
        Ok(setsockopt(&stream, Linger, &linger { l_onoff: 1, l_linger: 0 })?)
    };
    let count = || (0..).take_while(|_| Instant::now() < end).filter(|_| once().is_ok()).count() as u64;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..16).map(|_| scope.spawn(count)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(0)).sum()
    })
}

/// The median time of one byte there and back, in microseconds.
fn round_trip_us(port: u16) -> f64 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    let times = (0..5000).map(|_| {
        let start = Instant::now();
        let _ = stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0]));
        start.elapsed().as_secs_f64() * 1e6
    });
    median(times.collect())
}

/// Holds connections open, each after one byte there and back; returns how many worked, and the bytes of memory they
/// take.
fn hold(port: u16, forwarder: &Forwarder) -> (usize, u64) {
    let before = forwarder.memory_bytes();
    let streams: Vec<TcpStream> = (0..HELD).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect();
    for mut stream in &streams {
        let _ = stream.write_all(b"x");
    }
    let works = |mut stream: &TcpStream| {
        stream.set_read_timeout(Some(Duration::from_secs(5))).and_then(|()| stream.read_exact(&mut [0])).is_ok()
    };
    (streams.iter().filter(|stream| works(stream)).count(), forwarder.memory_bytes().saturating_sub(before))
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A port that is free at the moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// One row of figures, of a forwarder or, with `None`, of direct connections; `None` if the forwarder does not start.
fn measure(peer: Option<&Peer>, sink: &TargetServer, echo: &TargetServer) -> Option<[f64; 7]> {
    let start = |target: u16| match peer {
        None => Some((None, target)),
        Some(peer) => {
            let port = free_port();
            Some((Some(Forwarder::start(&(peer.command)(port, target), port)?), port))
        }
    };
    let cpu_s = |forwarder: &Option<Forwarder>| forwarder.as_ref().map_or(0.0, Forwarder::cpu_s);
    let mut row = Vec::new();
    for streams in [1, 8] {
        let (forwarder, port) = start(sink.port)?;
        let before = cpu_s(&forwarder);
        let (rate, bytes) = throughput(port, sink, streams, SECONDS);
        row.extend([rate * 8.0 / 1e9, (cpu_s(&forwarder) - before) / (bytes as f64 / 1e9)]);
    }
    let (forwarder, port) = start(echo.port)?;
    let before = cpu_s(&forwarder);
    let count = connections(port, SECONDS);
    row.extend([count as f64 / SECONDS, (cpu_s(&forwarder) - before) * 1000.0 / count as f64, round_trip_us(port)]);
    row.try_into().ok()
}

fn limited(sink: &TargetServer, streams: usize) {
    let port = free_port();
    let mut command = (PEERS[0].command)(port, sink.port);
    command.push(format!("--limit={LIMIT_KB_PER_S}"));
    let Some(forwarder) = Forwarder::start(&command, port) else { return };
    let (rate, _) = throughput(port, sink, streams, 10.0);
    let share = rate / (LIMIT_KB_PER_S as f64 * 1024.0);
    println!("--limit={LIMIT_KB_PER_S} over 10 s, {streams} streams: {share:.4} of it, {:.2} CPU s", forwarder.cpu_s());
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let (sink, echo) = (TargetServer::start(false), TargetServer::start(true));
    let peers: Vec<Option<&Peer>> =
        std::iter::once(None).chain(PEERS.iter().filter(|peer| is_wanted(peer.name)).map(Some)).collect();
    let mut rows = vec![Vec::new(); peers.len()];
    for _ in 0..ROUNDS {
        for (peer, rows) in peers.iter().zip(&mut rows) {
            rows.extend(measure(*peer, &sink, &echo));
        }
    }
    println!(
        "{:10} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "", "Gbit/s", "CPU s/GB", "8 stream", "CPU s/GB", "conn/s", "CPU ms", "RTT us"
    );
    for (peer, rows) in peers.iter().zip(&rows) {
        print!("{:10}", peer.map_or("direct", |peer| peer.name));
        for column in 0..7 {
            let digits = if column < 6 && column != 4 { 3 } else { 0 };
            print!(" {:8.digits$}", median(rows.iter().map(|row: &[f64; 7]| row[column]).collect()));
        }
        println!();
    }
    for peer in PEERS.iter().filter(|peer| is_wanted(peer.name)) {
        let port = free_port();
        if let Some(forwarder) = Forwarder::start(&(peer.command)(port, echo.port), port) {
            let (held, bytes) = hold(port, &forwarder);
            println!(
                "{}: {held} of {HELD} connections held, {:.1} KB each",
                peer.name,
                bytes as f64 / 1024.0 / held as f64
            );
        }
    }
    if is_wanted("runpipe") {
        [1, 50].into_iter().for_each(|streams| limited(&sink, streams));
    }
}
