//! What a hostile neighbour can do to the figures: an ordinary user of this host, with namespaces of his own, who attacks
//! while a monitor runs. docs/hostile-neighbours.md has what is left to him.
//!
//! No test asserts how late a tick is. Each waits for some ticks, which did not come, or not for minutes, where the attack
//! succeeded.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_dumpable, set_name, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrIn, sockopt,
};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, close, setgroups, setresgid, setresuid};
use tempfile::TempDir;

use crate::common::program::Running;
use crate::handing_over::{first_socket, receive};
use crate::support::cgroups::Cgroups;
use crate::support::harness::{Lack, Outcome, needs_packets};
use crate::support::machine::number;
use crate::support::monitor::Monitor;
use crate::support::netns::{Namespace, address, host_and_remote};
use crate::support::role::{as_role, end_with_test, role_command, start_role, stay, tell, told};

/// The ticks during which an attack goes on.
const TICKS: usize = 6;
/// The most memory that a monitor has, in kB: that of the sockets that can move something in six ticks.
const MOST_MEMORY: u64 = 220_000;
/// More than anything here moves.
const INVENTED: u64 = 1 << 39;
/// An ordinary name of the attacker, and that of the process beside which he lives.
const HOSTILE: &str = "hostile";
const VICTIM: &str = "victim";
/// The datagrams of an attacker who only sends some, their size, and that with the headers.
const DATAGRAMS: u64 = 500;
const DATAGRAM: usize = 1000;
const PACKET: u64 = DATAGRAM as u64 + 28;
/// The connections of an attacker, and what he moves over each.
const CONNECTIONS: u32 = 20;
const STREAM: usize = 200_000;
/// The bytes of sockets for which there was no room.
const TOO_MANY: &str = "(too many sockets at once)";

/// Where Debian's python3 is, in a place that every user may enter.
const PYTHON: &str = "/usr/bin/python3";

/// Plays the roles of this module, and says whether `role` is one.
pub fn play(role: &[&str]) -> bool {
    match *role {
        ["victim"] => {
            end_with_test();
            converse_with_oneself();
        }
        ["daemon", path] => {
            end_with_test();
            close_what_comes(path);
        }
        ["set-user-id"] => {
            tell(0);
            stay();
        }
        ["fresh", port] => {
            // Each datagram by a socket of its own, until the test says that it is enough.
            let (enough, told) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                stay();
                let _ = enough.send(());
            });
            let mut sent = 0;
            while told.try_recv().is_err() {
                send(&UdpSocket::bind("127.0.0.1:0").unwrap(), loopback(port), 1);
                sent += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            tell(sent);
            std::thread::park();
        }
        ["hostile-child", port] => {
            set_pdeathsig(Signal::SIGKILL).unwrap();
            let socket = UdpSocket::from(first_socket());
            send(&socket, loopback(port), DATAGRAMS);
            tell(0);
            std::thread::park();
        }
        ["hostile", ref act @ ..] => {
            become_ordinary();
            attack(act);
        }
        _ => return false,
    }
    true
}

fn attack(act: &[&str]) {
    match *act {
        ["forge"] => forge(),
        ["send", port] => {
            send(&UdpSocket::bind("127.0.0.1:0").unwrap(), loopback(port), DATAGRAMS);
            tell(0);
            stay();
        }
        ["pass", path] => pass_accepted(path),
        ["set-user-id", port, program] => set_user_id(port, program),
        ["share-port", port] => {
            let socket = reusable(port);
            tell(0);
            // Nobody reads it: whoever is bound last gets what is sent to the port.
            send(&socket, loopback(port), 1);
            stay();
        }
        ["claim", local, remote] => claim(local, remote),
        ["unshare", port] => {
            let sockets = [(); 4].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
            own_namespaces();
            for socket in &sockets {
                socket.connect(loopback(port)).unwrap();
                for _ in 0..DATAGRAMS / 4 {
                    socket.send(&[7; DATAGRAM]).unwrap();
                }
            }
            tell(0);
            stay();
        }
        ["comm", port] => {
            set_name(c"\xff\xe2\x80\xa8) R 1 (").unwrap();
            send(&UdpSocket::bind("127.0.0.1:0").unwrap(), loopback(port), DATAGRAMS);
            tell(0);
            stay();
        }
        ["in-flight", port] => {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let (sender, _receiver) = UnixStream::pair().unwrap();
            send(&socket, loopback(port), DATAGRAMS);
            hand_over(&sender, &socket);
            drop(socket);
            tell(0);
            stay();
        }
        ["churn"] => {
            end_with_test();
            loop {
                // A socket of this process that moves a byte, among many that move none.
                let to = UdpSocket::bind("127.0.0.1:0").unwrap();
                to.send_to(b"x", to.local_addr().unwrap()).unwrap();
                for _ in 0..3 {
                    drop(socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None).unwrap());
                }
            }
        }
        ["fill"] => {
            end_with_test();
            loop {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            }
        }
        ["execs", descriptors, length] => start_programs(descriptors.parse().unwrap(), length.parse().unwrap()),
        ["namespaces", count] => {
            let start = |_| {
                let mut child = role_command(HOSTILE, "hostile one-namespace").stdout(Stdio::piped()).spawn().unwrap();
                BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
                child
            };
            let children: Vec<_> = (0..count.parse().unwrap()).map(start).collect();
            tell(0);
            stay();
            drop(children);
        }
        ["one-namespace"] => {
            own_namespaces();
            end_with_test();
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            tell(0);
            loop {
                socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        ["flows", count] => {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            for n in 0..count.parse::<u32>().unwrap() {
                let to = (Ipv4Addr::from_bits(0x7f01_0000 + n / 60_000), (1000 + n % 60_000) as u16);
                // A datagram to a closed port is answered by an error of the next one.
                let _ = socket.send_to(b"x", to);
            }
            tell(0);
            stay();
        }
        ["sockets", count] => {
            own_namespaces();
            end_with_test();
            let listener = TcpListener::bind("0.0.0.0:0").unwrap();
            let to = listener.local_addr().unwrap().port();
            let sockets: Vec<_> = (0..count.parse::<u32>().unwrap())
                .map(|n| {
                    // A listener keeps few that wait.
                    let address = SocketAddr::from((Ipv4Addr::from_bits(0x7f00_0001 + n / 10_000), to));
                    (TcpStream::connect(address).unwrap(), listener.accept().unwrap())
                })
                .collect();
            tell(0);
            // Those that were accepted have no maker, so each is looked up when it moves.
            for (_, (mut stream, _)) in sockets.iter().map(|(made, (accepted, _))| (made, (accepted, ()))).cycle() {
                stream.write_all(b"x").unwrap();
            }
        }
        _ => panic!("no attack is called {act:?}"),
    }
}

/// Gives up all rights of root, for a user that nobody else is.
fn become_ordinary() {
    let id = 1_100_000 + number();
    if Uid::effective().is_root() {
        setgroups(&[]).unwrap();
        setresgid(Gid::from_raw(id), Gid::from_raw(id), Gid::from_raw(id)).unwrap();
        setresuid(Uid::from_raw(id), Uid::from_raw(id), Uid::from_raw(id)).unwrap();
        // So that its own files in /proc are its own.
        set_dumpable(true).unwrap();
    }
}

/// Makes a user namespace and a network namespace in it, whose root this process is.
fn own_namespaces() {
    let (uid, gid) = (Uid::current(), Gid::current());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).unwrap();
    for (file, text) in
        [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))]
    {
        std::fs::write(format!("/proc/self/{file}"), text).unwrap();
    }
    ip("link set lo up");
}

fn ip(arguments: &str) {
    assert!(
        Command::new("ip")
            .args(arguments.split(' '))
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .status()
            .unwrap()
            .success()
    );
}

fn loopback(port: &str) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port.parse().unwrap()).into()
}

fn send(socket: &UdpSocket, to: SocketAddr, datagrams: u64) {
    (0..datagrams).for_each(|_| drop(socket.send_to(&[7; DATAGRAM], to)));
}

fn hand_over(to: &UnixStream, socket: &impl AsRawFd) {
    let message = [ControlMessage::ScmRights(&[socket.as_raw_fd()])];
    socket::sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(b"x")], &message, MsgFlags::empty(), None).unwrap();
}

/// Moves some bytes ten times a second over a connection with itself.
fn converse_with_oneself() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    loop {
        client.write_all(&[7; 100]).unwrap();
        server.read_exact(&mut [0; 100]).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A daemon as there are many: it takes descriptors from everybody, and closes them.
fn close_what_comes(path: &str) {
    let listener = UnixListener::bind(path).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    tell(0);
    let (mut sender, _) = listener.accept().unwrap();
    loop {
        let fd = receive(&sender);
        close(fd).unwrap();
        sender.write_all(b"x").unwrap();
    }
}

/// Moves bytes over connections with itself, and lets the daemon close the ends that were accepted.
fn pass_accepted(path: &str) {
    let mut daemon = UnixStream::connect(path).unwrap();
    let connect = |_| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| (&client).write_all(&[7; STREAM]).unwrap());
            (&server).read_exact(&mut [0; STREAM]).unwrap();
        });
        (client, server)
    };
    let connections: Vec<_> = (0..CONNECTIONS).map(connect).collect();
    tell(0);
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
    for (client, server) in connections {
        hand_over(&daemon, &server);
        drop(server);
        daemon.read_exact(&mut [0]).unwrap();
        drop(client);
    }
    tell(0);
    stay();
}

/// Shares a socket with a child, which sends, and starts a program that runs as root.
fn set_user_id(port: &str, program: &str) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    // It has bytes before.
    send(&socket, loopback(port), 1);
    let mut wait = String::new();
    tell(0);
    std::io::stdin().lock().read_line(&mut wait).unwrap();
    let mut child = role_command("hostile_child", &format!("hostile-child {port}"));
    child.stdin(Stdio::from(std::os::fd::OwnedFd::from(socket.try_clone().unwrap()))).stdout(Stdio::inherit());
    let mut command = as_role(Command::new(program), "set_user_id", "set-user-id");
    command.stdin(Stdio::inherit());
    // The program that follows is its parent, and does not wait for it.
    std::mem::forget(child.spawn().unwrap());
    panic!("{}", command.exec());
}

/// A socket at a port that another user's socket has.
fn reusable(port: &str) -> UdpSocket {
    let fd = socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true).unwrap();
    socket::bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port.parse().unwrap())).unwrap();
    UdpSocket::from(fd)
}

/// In a namespace of its own, has the same address and port as another, and connects to the same peer.
fn claim(local: &str, remote: &str) {
    own_namespaces();
    let (local, remote): (SocketAddr, SocketAddr) = (local.parse().unwrap(), remote.parse().unwrap());
    for command in ["link add claimed type veth", "link set claimed up"] {
        ip(command);
    }
    ip(&format!("addr add {}/24 dev claimed", local.ip()));
    let socket = UdpSocket::bind(local).unwrap();
    socket.connect(remote).unwrap();
    let listener = TcpListener::bind(local).unwrap();
    tell(0);
    stay();
    drop((socket, listener));
}

/// Starts programs as fast as it can, each with many descriptors that are no sockets, and with a long command line.
fn start_programs(descriptors: usize, length: usize) {
    end_with_test();
    let files: Vec<File> = (0..descriptors).map(|_| File::open("/dev/null").unwrap()).collect();
    for file in &files {
        fcntl(file, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    }
    let starting = move || {
        for n in 0u64.. {
            let mut command = Command::new("/bin/true");
            command.args([n.to_string(), "x".repeat(length)]).stdin(Stdio::null()).stdout(Stdio::null());
            command.status().unwrap();
        }
    };
    let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(starting)).collect();
    tell(0);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    drop(files);
}

/// Sends messages of the kernel to each netlink socket in its namespace that is not its own, and to all groups.
fn forge() {
    own_namespaces();
    end_with_test();
    // Something that the monitor looks for here.
    std::thread::spawn(converse_with_oneself);
    let families = [SockProtocol::NetlinkRoute, SockProtocol::NetlinkSockDiag, SockProtocol::NetlinkNetFilter];
    let sockets = families.map(|family| {
        let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_NONBLOCK, family).unwrap();
        socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).unwrap();
        (family as u32, fd)
    });
    tell(0);
    loop {
        let table = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
        let column = |line: &str, at: usize| line.split_ascii_whitespace().nth(at)?.parse::<u32>().ok();
        let others: Vec<(u32, u32)> =
            table.lines().skip(1).filter_map(|line| Some((column(line, 1)?, column(line, 2)?))).collect();
        for _ in 0..1000 {
            for (family, fd) in &sockets {
                let ports = others.iter().filter(|(other, port)| other == family && *port != 0);
                let unicast = ports.map(|(_, port)| NetlinkAddr::new(*port, 0));
                for to in unicast.chain((0..4).map(|group| NetlinkAddr::new(0, 1 << group))) {
                    for sequence in [0, 1, 2, 3] {
                        let message = forged(*family, sequence);
                        let _ = socket::sendto(fd.as_raw_fd(), &message, &to, MsgFlags::MSG_DONTWAIT);
                    }
                }
            }
        }
    }
}

/// A row with a terabyte, and the end of a table.
fn forged(family: u32, sequence: u32) -> Vec<u8> {
    let message = |kind: u16, payload: &[u8]| {
        let mut bytes = (16 + payload.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(2u16.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(payload);
        bytes
    };
    let row = if family == SockProtocol::NetlinkSockDiag as u32 {
        // struct inet_diag_msg with struct tcp_info: an established connection of 127.0.0.1.
        let mut row = vec![0u8; 72];
        (row[0], row[1]) = (2, 1);
        row[4..8].copy_from_slice(&[0x12, 0x34, 0x12, 0x35]);
        row[8..12].copy_from_slice(&[127, 0, 0, 1]);
        row[24..28].copy_from_slice(&[127, 0, 0, 1]);
        row[44..52].copy_from_slice(&0x7777_7777_u64.to_ne_bytes());
        let mut info = vec![0u8; 232];
        info[120..128].copy_from_slice(&(1u64 << 40).to_ne_bytes());
        info[128..136].copy_from_slice(&(1u64 << 40).to_ne_bytes());
        row.extend((4 + info.len() as u16).to_ne_bytes());
        row.extend(2u16.to_ne_bytes());
        row.extend(info);
        message(20, &row)
    } else {
        message(if family == 0 { 20 } else { 256 }, &[2; 64])
    };
    [row, message(3, &[0; 4])].concat()
}

/// A monitor, and a process that should be shown at each of its ticks whatever others do.
struct Scene {
    monitor: Monitor,
    _victim: Running,
    /// The longest time from one tick to the next, and the most memory, in kB.
    latest: Duration,
    attack: String,
}

impl Scene {
    fn new(host: &Namespace, source: &str, attack: &str) -> Self {
        host.shell(bwmon::monitor::advice::ENABLE_COMMANDS);
        let victim = start_role(host, VICTIM, "victim");
        let monitor = Monitor::start(&[&format!("--source={source}"), "--unowned"]);
        let attack = format!("{attack}, {source}");
        let mut scene = Self { monitor, _victim: victim, latest: Duration::ZERO, attack };
        scene.pass(2);
        scene.latest = Duration::ZERO;
        scene
    }

    /// Waits until some ticks have passed.
    fn pass(&mut self, ticks: usize) {
        // Those that came while nobody read are no measure.
        self.monitor.program.stdout.so_far();
        let mut before = Instant::now();
        for _ in 0..ticks {
            while self.monitor.read_line() != VICTIM {}
            self.latest = self.latest.max(before.elapsed());
            before = Instant::now();
        }
        for (name, (bytes_in, bytes_out)) in &self.monitor.figures {
            assert!(*bytes_in.max(bytes_out) < INVENTED, "{name} has {bytes_in} in and {bytes_out} out");
        }
    }

    /// Bytes in and out that are shown by this name.
    fn shown(&self, name: &str) -> (u64, u64) {
        self.monitor.figures.get(name).copied().unwrap_or_default()
    }

    /// Memory in kB: what it has now, or had at most (`VmRSS`, `VmHWM` in proc_pid_status(5)).
    fn memory(&self, which: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.monitor.program.child.id())).unwrap();
        status
            .lines()
            .find_map(|line| line.strip_prefix(which)?.split_ascii_whitespace().next())
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Ends it by SIGTERM. Returns its lines on stderr.
    fn end(self) -> Vec<String> {
        self.figures();
        self.monitor.end_with(|line| !line.is_empty())
    }

    /// Appends how late the monitor was and how much memory it had to the file that the environment names.
    fn figures(&self) {
        let Some(path) = std::env::var_os("BWMON_TEST_FIGURES") else { return };
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        let (latest, memory) = (self.latest.as_millis(), self.memory("VmHWM:") / 1024);
        writeln!(file, "{} | {latest} ms | {memory} MB", self.attack).unwrap();
    }
}

fn start_hostile(host: &Namespace, act: &str) -> Running {
    let hostile = start_role(host, HOSTILE, &format!("hostile {act}"));
    told(&hostile);
    hostile
}

/// A socket that gets what is sent to it, and its port.
fn sink() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

pub fn forged_netlink_messages_invent_nothing_and_hold_up_nobody() -> Outcome {
    needs_packets()?;
    let host = &Namespace::here();
    for source in ["packets", "conntrack", "sockets"] {
        let hostile = start_hostile(host, "forge");
        let mut scene = Scene::new(host, source, "forged netlink messages");
        scene.pass(TICKS);
        scene.end();
        drop(hostile);
    }
    Ok(())
}

/// Starts tests/live/support/neighbour.py as an ordinary user.
fn start_neighbour(host: &Namespace, directory: &TempDir, port: u16, act: &[&str]) -> Result<Running, Lack> {
    if !Path::new(PYTHON).exists() {
        return Err(Lack(format!("{PYTHON} (no such file)")));
    }
    let path = |name: &str| directory.path().join(name);
    let program = path("neighbour.py");
    if !program.exists() {
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        std::fs::write(&program, include_str!("support/neighbour.py")).unwrap();
        std::fs::create_dir(path("mounts")).unwrap();
        std::fs::set_permissions(path("mounts"), Permissions::from_mode(0o777)).unwrap();
        // As /dev/fuse on most hosts: everybody may open it.
        mknod(&path("fuse"), SFlag::S_IFCHR, Mode::all(), makedev(10, 229)).unwrap();
        std::fs::set_permissions(path("fuse"), Permissions::from_mode(0o666)).unwrap();
    }
    let id = 1_100_000 + number();
    let mut command = Command::new(PYTHON);
    command.arg(program).args([path("fuse"), path("mounts")]).arg(port.to_string()).args(act);
    command.uid(id).gid(id).stdin(Stdio::piped());
    let neighbour = host.run(|| Running::start(&mut command));
    told(&neighbour);
    Ok(neighbour)
}

pub fn a_command_line_that_never_comes_keeps_nobody_waiting() -> Outcome {
    needs_packets()?;
    let host = &Namespace::here();
    let (_sink, port) = sink();
    for source in ["packets", "conntrack"] {
        for (act, count) in [("hang", "20"), ("slow", "20")] {
            let directory = TempDir::new().unwrap();
            let mut scene = Scene::new(host, source, &format!("{count} command lines that {act}"));
            let neighbour = start_neighbour(host, &directory, port, &[act, count])?;
            scene.pass(TICKS);
            let said = scene.end();
            let told = said.iter().any(|line| line.contains("command line"));
            assert!(told || (act, source) != ("hang", "packets"), "{said:#?}");
            drop(neighbour);
        }
    }
    Ok(())
}

pub fn a_daemon_that_only_closes_a_socket_gets_none_of_its_bytes() -> Outcome {
    needs_packets()?;
    let host = &Namespace::here();
    let sockets = TempDir::new().unwrap();
    std::fs::set_permissions(sockets.path(), Permissions::from_mode(0o755)).unwrap();
    let path = sockets.path().join("daemon");
    let daemon = start_role(host, "daemon", &format!("daemon {}", path.display()));
    told(&daemon);
    let mut scene = Scene::new(host, "packets", "sockets passed to a daemon");
    let mut hostile = start_hostile(host, &format!("pass {}", path.display()));
    scene.pass(3);
    writeln!(hostile.child.stdin.as_mut().unwrap()).unwrap();
    told(&hostile);
    scene.pass(3);
    let moved = u64::from(CONNECTIONS) * STREAM as u64;
    let (bytes_in, bytes_out) = scene.shown(HOSTILE);
    assert!(bytes_in >= moved && bytes_out >= moved, "{:#?}", scene.monitor.figures);
    assert_eq!(scene.shown("daemon"), (0, 0), "{:#?}", scene.monitor.figures);
    scene.end();
    Ok(())
}

pub fn a_program_of_root_gets_no_bytes_of_the_user_who_starts_it() -> Outcome {
    needs_packets()?;
    let host = &Namespace::here();
    let (_sink, port) = sink();
    let programs = TempDir::new().unwrap();
    std::fs::set_permissions(programs.path(), Permissions::from_mode(0o755)).unwrap();
    let program = programs.path().join("set-user-id");
    assert!(
        Command::new("install")
            .args(["-m", "4755"])
            .arg(std::env::current_exe().unwrap())
            .arg(&program)
            .status()
            .unwrap()
            .success()
    );
    let mut scene = Scene::new(host, "packets", "a set-user-id program");
    let mut hostile = start_hostile(host, &format!("set-user-id {port} {}", program.display()));
    scene.pass(2);
    writeln!(hostile.child.stdin.as_mut().unwrap()).unwrap();
    // The program, and the child when it has sent.
    assert_eq!([told(&hostile), told(&hostile)], [0, 0]);
    scene.pass(3);
    let shown = scene.shown("set_user_id");
    assert_eq!(shown, (0, 0), "{:#?}", scene.monitor.figures);
    scene.end();
    Ok(())
}

pub fn who_shares_a_port_with_another_user_gets_only_its_own_bytes() -> Outcome {
    needs_packets()?;
    let host = &Namespace::here();
    let mut scene = Scene::new(host, "packets", "a port shared with another user");
    let (_sink, port) = sink();
    let mine = reusable("0");
    let shared = mine.local_addr().unwrap().port().to_string();
    let hostile = start_hostile(host, &format!("share-port {shared}"));
    send(&mine, loopback(&port.to_string()), DATAGRAMS);
    scene.pass(3);
    // It sends one datagram, which comes to itself.
    assert_eq!(scene.shown(HOSTILE), (PACKET, PACKET), "{:#?}", scene.monitor.figures);
    scene.end();
    drop(hostile);
    Ok(())
}

pub fn who_claims_the_address_of_another_gets_none_of_its_bytes() -> Outcome {
    needs_packets()?;
    for source in ["packets", "conntrack"] {
        let (host, remote) = &host_and_remote();
        let [[host_v4, _], [remote_v4, _]] = [1, 2].map(address);
        let mut scene = Scene::new(host, source, "claimed addresses");
        let peer = remote.run(|| UdpSocket::bind(format!("{remote_v4}:0")).unwrap());
        let socket = host.run(|| UdpSocket::bind(format!("{host_v4}:0")).unwrap());
        let [ours, theirs] = [&socket, &peer].map(|socket| socket.local_addr().unwrap());
        let hostile =
            [format!("claim {ours} {theirs}"), format!("claim {theirs} {ours}")].map(|act| start_hostile(host, &act));
        send(&socket, theirs, DATAGRAMS);
        send(&peer, ours, DATAGRAMS);
        scene.pass(3);
        assert_eq!(scene.shown(HOSTILE), (0, 0), "{:#?}", scene.monitor.figures);
        scene.end();
        drop(hostile);
        host.shell("ip link del cable");
    }
    Ok(())
}

pub fn bytes_cannot_be_hidden() -> Outcome {
    needs_packets()?;
    let host = &Namespace::here();
    let (_sink, port) = sink();
    for act in ["unshare", "comm", "in-flight"] {
        let mut scene = Scene::new(host, "packets", &format!("bytes hidden by {act}"));
        let hostile = start_hostile(host, &format!("{act} {port}"));
        scene.pass(3);
        assert_eq!(scene.shown(HOSTILE).1, DATAGRAMS * PACKET, "{act}: {:#?}", scene.monitor.figures);
        scene.end();
        drop(hostile);
    }
    Ok(())
}

pub fn memory_is_bounded_whatever_sockets_come_and_go() -> Outcome {
    needs_packets()?;
    let host = &Namespace::here();
    let mut scene = Scene::new(host, "packets", "sockets that come and go");
    let hostile = [(); 2].map(|()| start_role(host, HOSTILE, "hostile churn"));
    scene.pass(25);
    let memory = scene.memory("VmHWM:");
    assert!(memory < MOST_MEMORY, "{memory} kB");
    scene.end();
    drop(hostile);
    Ok(())
}

pub fn many_sockets_of_one_leave_room_for_others() -> Outcome {
    needs_packets()?;
    let host = &Namespace::here();
    let mut cgroups = Cgroups::new()?;
    let service = cgroups.make(&format!("system.slice/bwmon-{}.service", number()))?;
    let (_sink, port) = sink();
    let mut scene = Scene::new(host, "packets", "sockets that all move something");
    let hostile = [(); 2].map(|()| start_role(host, HOSTILE, "hostile fill"));
    while scene.shown(TOO_MANY) == (0, 0) {
        scene.pass(1);
    }
    let mut fresh = start_role(host, "fresh", &format!("within {service} 0 fresh fresh {port}"));
    scene.pass(3);
    writeln!(fresh.child.stdin.as_mut().unwrap()).unwrap();
    let sent = u64::from(told(&fresh));
    drop(hostile);
    scene.pass(3);
    assert_eq!(scene.shown("fresh"), (0, sent * (28 + DATAGRAM as u64)), "{:#?}", scene.monitor.figures);
    scene.end();
    Ok(())
}

pub fn programs_that_start_and_end_hold_up_nobody() -> Outcome {
    needs_packets()?;
    let host = &Namespace::here();
    for (descriptors, length) in [(0, 4_000), (250, 32_000)] {
        let mut scene =
            Scene::new(host, "packets", &format!("programs with {descriptors} descriptors, {length} bytes"));
        let hostile = start_hostile(host, &format!("execs {descriptors} {length}"));
        scene.pass(TICKS);
        scene.end();
        drop(hostile);
    }
    Ok(())
}

pub fn many_namespaces_hold_up_nobody() -> Outcome {
    needs_packets()?;
    let host = &Namespace::here();
    let hostile = start_hostile(host, "namespaces 300");
    for source in ["packets", "conntrack", "sockets"] {
        let mut scene = Scene::new(host, source, "300 namespaces");
        scene.pass(TICKS);
        scene.end();
    }
    drop(hostile);
    Ok(())
}

pub fn many_flows_and_sockets_hold_up_nobody() -> Outcome {
    needs_packets()?;
    let host = &Namespace::here();
    let mut scene = Scene::new(host, "conntrack", "200,000 flows");
    let hostile = start_hostile(host, "flows 200000");
    scene.pass(TICKS);
    scene.end();
    drop(hostile);
    let hostile = [(); 5].map(|()| start_hostile(host, "sockets 5000"));
    for source in ["packets", "sockets"] {
        let mut scene = Scene::new(host, source, "50,000 sockets");
        scene.pass(TICKS);
        scene.end();
    }
    drop(hostile);
    Ok(())
}

pub fn many_processes_and_descriptors_hold_up_nobody() -> Outcome {
    needs_packets()?;
    let host = &Namespace::here();
    let (_sink, port) = sink();
    let attacks: [&[&str]; 3] = [&["share", "300", "19000"], &["processes", "3000", "5000"], &["forks"]];
    for act in attacks {
        for source in ["packets", "conntrack"] {
            let directory = TempDir::new().unwrap();
            let mut scene = Scene::new(host, source, &act.join(" "));
            let neighbour = start_neighbour(host, &directory, port, act)?;
            // Sockets that no process holds, so that all processes are searched for them.
            let unheld = start_hostile(host, &format!("in-flight {port}"));
            scene.pass(TICKS);
            scene.end();
            drop((neighbour, unheld));
        }
    }
    Ok(())
}
