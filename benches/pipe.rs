//! runpipe beside other TCP forwarders: `sudo cargo bench --bench pipe`, or only some of it with `-- NAME...`: the names
//! of forwarders, of networks (`loopback`, `veth`) and of figures (`up`, `down`, `connections`, `requests`, `held`,
//! `limit`).
//!
//! Measures the forwarders one after the other, in three rounds or in `--rounds=N`, and prints medians with the lowest and
//! the highest: throughput each way and CPU seconds per GB with 1, 4, 8 and 64 streams, connections per second with 1 and
//! 16 clients, and requests and answers of 1 KB in 16 connections, with the 99th percentile of their time. Over `veth`, the
//! clients and the target are in network namespaces of their own, which needs root. Then, once, the memory of 8,000 open
//! connections, and how close runpipe comes to a limit. The bytes go from threads of this program to other threads of it;
//! `direct` is without a forwarder. HAProxy and nginx have as many threads and processes as runpipe has threads. It leaves
//! out what is not installed.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bwmon::pipe::default_threads;
use nix::libc::linger;
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{setsockopt, sockopt::Linger};
use nix::unistd::{Pid, SysconfVar, sysconf};

const SECONDS: f64 = 1.0;
const HELD: usize = 8000;
const LIMIT_KB_PER_S: u64 = 10 * 1024;
const REQUEST_BYTES: usize = 1024;

/// A forwarder to measure, and its command line: from `port` of all addresses to `target`.
struct Peer {
    name: &'static str,
    command: fn(port: u16, target: SocketAddr) -> Vec<String>,
}

const PEERS: [Peer; 5] = [
    Peer {
        name: "runpipe",
        command: |port, target| {
            words(&format!("{} {port} {} {}", env!("CARGO_BIN_EXE_runpipe"), target.ip(), target.port()))
        },
    },
    Peer {
        name: "haproxy",
        command: |port, target| {
            let text = format!(
                "global\n maxconn 9000\n maxpipes 500\n nbthread {}\ndefaults\n mode tcp\n option splice-request\n \
                 option splice-response\n timeout connect 5s\n timeout client 1h\n timeout server 1h\nlisten l\n \
                 bind :{port}\n server s {target}\n",
                default_threads()
            );
            vec!["haproxy".into(), "-db".into(), "-f".into(), config("haproxy", &text)]
        },
    },
    Peer {
        name: "nginx",
        command: |port, target| {
            let text = format!(
                "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nworker_processes {};\n\
                 worker_rlimit_nofile 40000;\ndaemon off;\npid {};\nerror_log /dev/null;\n\
                 events {{ worker_connections 20000; }}\n\
                 stream {{ server {{ listen {port} reuseport backlog=4096; proxy_pass {target}; }} }}\n",
                default_threads(),
                config("nginx-pid", "")
            );
            vec!["nginx".into(), "-c".into(), config("nginx", &text)]
        },
    },
    Peer {
        name: "socat",
        command: |port, target| {
            words(&format!("socat -b65536 TCP-LISTEN:{port},fork,reuseaddr,backlog=4096 TCP:{target}"))
        },
    },
    Peer {
        name: "rinetd",
        command: |port, target| {
            let text = format!("0.0.0.0 {port} {} {}\n", target.ip(), target.port());
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
    fn start(command: &[String], net: &Net, address: SocketAddr) -> Option<Self> {
        let child = net.forwarder(command).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().ok()?;
        let forwarder = Self(child);
        for _ in 0..200 {
            if net.connect(address).is_ok() {
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

/// Where the clients, the forwarder and the target are: here, or each in a network namespace of its own.
struct Net {
    name: &'static str,
    clients: Option<fs::File>,
    target: Option<fs::File>,
    /// The namespaces to delete; the first is the forwarder's.
    namespaces: Vec<String>,
    target_ip: IpAddr,
    /// The forwarder's address for the clients.
    forwarder_ip: IpAddr,
}

impl Net {
    fn loopback() -> Self {
        let ip = Ipv4Addr::LOCALHOST.into();
        Self { name: "loopback", clients: None, target: None, namespaces: Vec::new(), target_ip: ip, forwarder_ip: ip }
    }

    /// Three namespaces, with a veth pair from the forwarder's to each of the others, between which it routes; `None` without
    /// root.
    fn veth() -> Option<Self> {
        let names = ["f", "c", "t"].map(|role| format!("bench{}{role}", std::process::id()));
        let mut net = Self::loopback();
        (net.name, net.namespaces) = ("veth", names.to_vec());
        net.target_ip = Ipv4Addr::new(10, 91, 2, 2).into();
        net.forwarder_ip = Ipv4Addr::new(10, 91, 1, 1).into();
        for name in &names {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
            // As on loopback: the ports of connections that are over would run out.
            ip(&format!("netns exec {name} sysctl -qw net.ipv4.tcp_tw_reuse=1"))?;
        }
        let [forwarder, clients, target] = &names;
        for (outer, subnet) in [(clients, 1), (target, 2)] {
            ip(&format!("-n {forwarder} link add v{subnet} type veth peer name v{subnet} netns {outer}"))?;
            for (name, host) in [(forwarder, 1), (outer, 2)] {
                ip(&format!("-n {name} addr add 10.91.{subnet}.{host}/24 dev v{subnet}"))?;
                ip(&format!("-n {name} link set v{subnet} up"))?;
            }
            // For direct connections.
            ip(&format!("-n {outer} route add default via 10.91.{subnet}.1"))?;
        }
        ip(&format!("netns exec {forwarder} sysctl -qw net.ipv4.ip_forward=1"))?;
        let open = |name: &str| fs::File::open(format!("/run/netns/{name}")).ok();
        (net.clients, net.target) = (Some(open(clients)?), Some(open(target)?));
        Some(net)
    }

    /// A command that runs where the forwarder is.
    fn forwarder(&self, command: &[String]) -> Command {
        let mut line = match self.namespaces.first() {
            None => Command::new(&command[0]),
            Some(name) => {
                let mut line = Command::new("nsenter");
                line.arg(format!("--net=/run/netns/{name}")).arg(&command[0]);
                line
            }
        };
        line.args(&command[1..]);
        line
    }

    /// Connects as a client.
    fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        inside(self.clients.as_ref(), || TcpStream::connect(address))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.namespaces {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

fn ip(arguments: &str) -> Option<()> {
    let status = Command::new("ip").args(arguments.split(' ')).stderr(Stdio::null()).status().ok()?;
    status.success().then_some(())
}

/// Calls `work` in a network namespace. A socket stays in the one in which it was made.
fn inside<T: Send>(namespace: Option<&fs::File>, work: impl FnOnce() -> T + Send) -> T {
    let Some(namespace) = namespace else { return work() };
    let work = || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter a namespace");
        work()
    };
    thread::scope(|scope| scope.spawn(work).join().expect("work in a namespace"))
}

/// What a server does with a connection.
#[derive(Clone, Copy)]
enum Service {
    /// Sends each byte back.
    Echo,
    /// Counts the bytes that come.
    Sink,
    /// Sends as fast as it can.
    Source,
}

/// The target of the forwarders.
struct TargetServer {
    address: SocketAddr,
    received: Arc<AtomicU64>,
}

impl TargetServer {
    fn start(net: &Net, service: Service) -> Self {
        let listener = inside(net.target.as_ref(), || TcpListener::bind((net.target_ip, 0))).expect("listen");
        let address = listener.local_addr().expect("own address");
        let received = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&received);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = Arc::clone(&count);
                let serve = move || match service {
                    Service::Echo => echo_bytes(&stream),
                    Service::Sink => receive(&stream, &count),
                    Service::Source => send(&stream, &AtomicBool::new(false)),
                };
                // A small stack, since there will be thousands of threads.
                let _ = thread::Builder::new().stack_size(256 << 10).spawn(serve);
            }
        });
        Self { address, received }
    }
}

fn echo_bytes(mut stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; REQUEST_BYTES];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}

fn receive(mut stream: &TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 1 << 17];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
}

fn send(mut stream: &TcpStream, stop: &AtomicBool) {
    let block = vec![b'x'; 1 << 17];
    while !stop.load(Ordering::Relaxed) && stream.write_all(&block).is_ok() {}
}

/// The bytes per second that arrive in `streams` connections, and by how much `cpu_s` grows per GB. The clients send as
/// fast as they can to the `sink`; without one, they receive from the target.
fn throughput(
    net: &Net,
    address: SocketAddr,
    sink: Option<&TargetServer>,
    streams: usize,
    seconds: f64,
    cpu_s: impl Fn() -> f64,
) -> (f64, f64) {
    let (stop, received) = (AtomicBool::new(false), sink.map_or_else(Arc::default, |sink| Arc::clone(&sink.received)));
    let connections: Vec<TcpStream> = (0..streams).map(|_| net.connect(address).expect("connect")).collect();
    thread::scope(|scope| {
        for stream in &connections {
            let (stop, received) = (&stop, &received);
            scope.spawn(move || if sink.is_some() { send(stream, stop) } else { receive(stream, received) });
        }
        let (cpu, before, start) = (cpu_s(), received.load(Ordering::Relaxed), Instant::now());
        thread::sleep(Duration::from_secs_f64(seconds));
        let (bytes, elapsed) = (received.load(Ordering::Relaxed) - before, start.elapsed());
        let cpu = cpu_s() - cpu;
        stop.store(true, Ordering::Relaxed);
        connections.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        (bytes as f64 / elapsed.as_secs_f64(), cpu / (bytes as f64 / 1e9))
    })
}

/// Connects, exchanges one byte and resets, again and again in `clients` threads; returns the number of connections.
fn connections(net: &Net, address: SocketAddr, clients: usize, seconds: f64) -> u64 {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let once = || -> io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        // A reset leaves no TIME_WAIT; otherwise the ports would run out.
        Ok(setsockopt(&stream, Linger, &linger { l_onoff: 1, l_linger: 0 })?)
    };
    let count = || (0..).take_while(|_| Instant::now() < end).filter(|_| once().is_ok()).count() as u64;
    let count = || inside(net.clients.as_ref(), count);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..clients).map(|_| scope.spawn(count)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(0)).sum()
    })
}

/// Requests and answers of 1 KB, one after the other in each of `clients` connections: how many a second, and the 99th
/// percentile of their time in microseconds.
fn requests(net: &Net, address: SocketAddr, clients: usize, seconds: f64) -> (f64, f64) {
    let streams: Vec<TcpStream> = (0..clients).map(|_| net.connect(address).expect("connect")).collect();
    let start = Instant::now();
    let times = |mut stream: &TcpStream| {
        let (mut bytes, mut times) = ([b'x'; REQUEST_BYTES], Vec::new());
        let _ = stream.set_nodelay(true);
        while start.elapsed().as_secs_f64() < seconds {
            let sent = Instant::now();
            if stream.write_all(&bytes).and_then(|()| stream.read_exact(&mut bytes)).is_err() {
                break;
            }
            times.push(sent.elapsed().as_secs_f64() * 1e6);
        }
        times
    };
    let mut all: Vec<f64> = thread::scope(|scope| {
        let workers: Vec<_> = streams.iter().map(|stream| scope.spawn(move || times(stream))).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    all.sort_by(f64::total_cmp);
    (all.len() as f64 / seconds, all.get(all.len() * 99 / 100).copied().unwrap_or(f64::NAN))
}

/// Holds connections open, each after one byte there and back; returns how many worked, and the bytes of memory they
/// take.
fn hold(address: SocketAddr, forwarder: &Forwarder) -> (usize, u64) {
    let before = forwarder.memory_bytes();
    let streams: Vec<TcpStream> = (0..HELD).filter_map(|_| TcpStream::connect(address).ok()).collect();
    for mut stream in &streams {
        let _ = stream.write_all(b"x");
    }
    let works = |mut stream: &TcpStream| {
        stream.set_read_timeout(Some(Duration::from_secs(5))).and_then(|()| stream.read_exact(&mut [0])).is_ok()
    };
    (streams.iter().filter(|stream| works(stream)).count(), forwarder.memory_bytes().saturating_sub(before))
}

/// The median of some figures, and the lowest and the highest.
fn spread(mut figures: Vec<f64>, digits: usize) -> String {
    figures.sort_by(f64::total_cmp);
    let (Some(lowest), Some(highest)) = (figures.first(), figures.last()) else { return "-".into() };
    format!("{:.digits$} ({lowest:.digits$}-{highest:.digits$})", figures[figures.len() / 2])
}

/// A port that is free at the moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// The targets in one network.
struct Targets {
    echo: TargetServer,
    sink: TargetServer,
    source: TargetServer,
}

impl Targets {
    fn start(net: &Net) -> Self {
        let [echo, sink, source] =
            [Service::Echo, Service::Sink, Service::Source].map(|service| TargetServer::start(net, service));
        Self { echo, sink, source }
    }
}

/// What a figure is, the digits to print, and its value.
type Figure = (String, usize, f64);

/// Starts a forwarder, or nothing for direct connections. Returns it with the address to connect to; `None` if it does not
/// start.
fn start(net: &Net, peer: Option<&Peer>, target: SocketAddr) -> Option<(Option<Forwarder>, SocketAddr)> {
    let Some(peer) = peer else { return Some((None, target)) };
    let address = SocketAddr::new(net.forwarder_ip, free_port());
    Some((Some(Forwarder::start(&(peer.command)(address.port(), target), net, address)?), address))
}

/// Measures a forwarder, or direct connections, once.
fn measure(net: &Net, peer: Option<&Peer>, targets: &Targets, is_wanted: &dyn Fn(&str) -> bool) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (way, target, sink) in [("up", &targets.sink, Some(&targets.sink)), ("down", &targets.source, None)] {
        for streams in [1, 4, 8, 64].into_iter().filter(|_| is_wanted(way)) {
            if let Some((forwarder, address)) = start(net, peer, target.address) {
                let cpu_s = || forwarder.as_ref().map_or(0.0, Forwarder::cpu_s);
                let (rate, cpu_s_per_gb) = throughput(net, address, sink, streams, SECONDS, cpu_s);
                figures.push((format!("{way} {streams}, Gbit/s"), 1, rate * 8.0 / 1e9));
                figures.push((format!("{way} {streams}, CPU s/GB"), 3, cpu_s_per_gb));
            }
        }
    }
    if is_wanted("connections")
        && let Some((_forwarder, address)) = start(net, peer, targets.echo.address)
    {
        for clients in [1, 16] {
            let count = connections(net, address, clients, SECONDS) as f64;
            figures.push((format!("connections/s, {clients} clients"), 0, count / SECONDS));
        }
    }
    if is_wanted("requests")
        && let Some((_forwarder, address)) = start(net, peer, targets.echo.address)
    {
        let (per_s, us) = requests(net, address, 16, SECONDS);
        figures.push(("requests of 1 KB/s".into(), 0, per_s));
        figures.push(("99 % of them within us".into(), 0, us));
    }
    figures
}

fn compare(rounds: usize, net: &Net, peers: &[Option<&Peer>], is_wanted: &dyn Fn(&str) -> bool) {
    let targets = Targets::start(net);
    let mut figures = vec![Vec::new(); peers.len()];
    for _ in 0..rounds {
        for (peer, figures) in peers.iter().zip(&mut figures) {
            figures.extend(measure(net, *peer, &targets, is_wanted));
        }
    }
    print!("{:26}", net.name);
    peers.iter().for_each(|peer| print!(" {:>23}", peer.map_or("direct", |peer| peer.name)));
    println!();
    // Direct connections have all figures, once in each round.
    for (name, digits, _) in &figures[0][..figures[0].len() / rounds] {
        print!("{name:26}");
        for figures in &figures {
            let values = figures.iter().filter(|(other, ..)| other == name).map(|(.., value)| *value);
            print!(" {:>23}", spread(values.collect(), *digits));
        }
        println!();
    }
}

fn limited(net: &Net, sink: &TargetServer, streams: usize) {
    let address = SocketAddr::new(net.forwarder_ip, free_port());
    let mut command = (PEERS[0].command)(address.port(), sink.address);
    command.push(format!("--limit={LIMIT_KB_PER_S}"));
    let Some(forwarder) = Forwarder::start(&command, net, address) else { return };
    let (rate, _) = throughput(net, address, Some(sink), streams, 10.0, || 0.0);
    let share = rate / (LIMIT_KB_PER_S as f64 * 1024.0);
    println!("--limit={LIMIT_KB_PER_S} over 10 s, {streams} streams: {share:.4} of it, {:.2} CPU s", forwarder.cpu_s());
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    // Of each group of names, all are wanted if none is named.
    let is_wanted = |group: &[&str], name: &str| {
        let is_named = |name: &str| wanted.iter().any(|wanted| wanted == name);
        is_named(name) || !group.iter().any(|name| is_named(name))
    };
    let is_figure = |name: &str| is_wanted(&["up", "down", "connections", "requests", "held", "limit"], name);
    let is_net = |name: &str| is_wanted(&["loopback", "veth"], name);
    let names = PEERS.each_ref().map(|peer| peer.name);
    let wanted_peers: Vec<&Peer> = PEERS.iter().filter(|peer| is_wanted(&names, peer.name)).collect();
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let rounds = std::env::args().find_map(|argument| {
        Some(argument.strip_prefix("--rounds=")?.parse::<NonZeroUsize>().expect("--rounds=N: a number from 1 on"))
    });
    let rounds = rounds.map_or(3, NonZeroUsize::get);
    println!("{} threads, {rounds} rounds of {SECONDS} s, medians (lowest-highest)", default_threads());
    let peers: Vec<Option<&Peer>> = std::iter::once(None).chain(wanted_peers.iter().copied().map(Some)).collect();
    let loopback = Net::loopback();
    if is_net("loopback") {
        compare(rounds, &loopback, &peers, &is_figure);
    }
    if is_net("veth") {
        match Net::veth() {
            Some(net) => compare(rounds, &net, &peers, &is_figure),
            None => println!("veth: left out, it needs root and ip(8)"),
        }
    }
    let targets = Targets::start(&loopback);
    for peer in wanted_peers.iter().filter(|_| is_figure("held")) {
        if let Some((Some(forwarder), address)) = start(&loopback, Some(*peer), targets.echo.address) {
            let (held, bytes) = hold(address, &forwarder);
            let kb = bytes as f64 / 1024.0 / held as f64;
            println!("{}: {held} of {HELD} connections held, {kb:.1} KB each", peer.name);
        }
    }
    if is_figure("limit") && is_wanted(&names, "runpipe") {
        [1, 50].into_iter().for_each(|streams| limited(&loopback, &targets.sink, streams));
    }
}
