//! Roles of the soak: processes that come, move some bytes and go, and the one that makes them.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};

use super::{command, play, say};
use crate::soak::ports;

/// How long a guest waits for bytes.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most guests at a time: more wait, as on a machine that is too slow for its work.
const MOST_AT_ONCE: usize = 200;
/// One in this many guests has a network namespace of its own.
const ONE_APART_IN: u64 = 64;
/// The most bytes of a visit. They fit a packet of the loopback interface, so that nothing is segmented, and all
/// counters of the kernel count the same headers.
const MOST_BYTES: u64 = 40_000;

/// How a guest is started, and what is to be removed after it.
struct Guest {
    process: Child,
    cgroup: Option<PathBuf>,
    may_fail: bool,
}

/// Starts `rate` guests a second for `time`, each another process that does something else; prints how many there were, and
/// how many failed of those that may not. `cgroups` is a directory of cgroup2 in which they may have some, or `-`.
pub fn come_and_go(rate: f64, time: Duration, cgroups: &str) -> Result<()> {
    let start = Instant::now();
    let mut guests: Vec<Guest> = Vec::new();
    let (mut number, mut failed) = (0_u64, 0_u64);
    say("ready")?;
    while start.elapsed() < time {
        guests.push(start_guest(number, cgroups).context("cannot start a guest")?);
        number += 1;
        loop {
            failed += leave(&mut guests)?;
            let next = start + Duration::from_secs_f64(number as f64 / rate);
            if guests.len() < MOST_AT_ONCE && Instant::now() >= next {
                break;
            }
            sleep(
                next.saturating_duration_since(Instant::now())
                    .clamp(Duration::from_millis(1), Duration::from_millis(20)),
            );
        }
    }
    while !guests.is_empty() {
        failed += leave(&mut guests)?;
        sleep(Duration::from_millis(10));
    }
    say(&format!("{number} {failed}"))
}

/// Forgets the guests that have ended; returns how many of them failed.
fn leave(guests: &mut Vec<Guest>) -> Result<u64> {
    let mut failed = 0;
    let mut left = Vec::with_capacity(guests.len());
    for mut guest in guests.drain(..) {
        match guest.process.try_wait()? {
            None => left.push(guest),
            Some(status) => {
                failed += u64::from(!status.success() && !guest.may_fail);
                if let Some(cgroup) = &guest.cgroup {
                    fs::remove_dir(cgroup).with_context(|| format!("cannot remove {}", cgroup.display()))?;
                }
            }
        }
    }
    *guests = left;
    Ok(failed)
}

fn start_guest(number: u64, cgroups: &str) -> Result<Guest> {
    let v4 = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = |port: u16| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    // The command lines of a while: a user's are told apart only up to some thousand within minutes.
    let group = number / 256;
    // Spread over all sizes, and the same in each run.
    let bytes = 100 + group.wrapping_mul(0x9E37_79B9_7F4A_7C15) % MOST_BYTES;
    let visit = |to: SocketAddr, end: &str| format!("visit {to} {bytes} {end} - {group}");
    let client = "soak-client";
    let mut cgroup = None;
    let mut may_fail = false;
    let (name, role) = if number % ONE_APART_IN == ONE_APART_IN - 1 {
        ("soak-apart".to_owned(), format!("apart {bytes} {group}"))
    } else {
        match number % 16 {
            0..4 => (client.to_owned(), visit(v4(ports::ECHO), "closes")),
            4..6 => (client.to_owned(), visit(v6(ports::ECHO), "closes")),
            6 => (client.to_owned(), visit(v4(ports::ECHO), "resets")),
            7 => (client.to_owned(), format!("datagrams {} 2 connected", v4(ports::DATAGRAMS))),
            8 => (client.to_owned(), format!("datagrams {} 2 unconnected", v6(ports::DATAGRAMS))),
            9..11 => (client.to_owned(), format!("visit {} {bytes} closes steady {group}", v4(ports::STEADY_PIPE))),
            11 => (client.to_owned(), format!("visit {} {bytes} closes steady {group}", v6(ports::STEADY_PIPE))),
            12 => {
                // Now and then, nothing listens there.
                may_fail = true;
                (client.to_owned(), format!("visit {} {bytes} closes passing {group}", v4(ports::PASSING_PIPE)))
            }
            13 => {
                may_fail = true;
                let port = [ports::MONITOR_PAGE, ports::AGGREGATOR_PAGE][(number / 16 % 2) as usize];
                ("page-reader".to_owned(), format!("read-page {} {}", v4(port), number / 32 % 5))
            }
            14 => (format!("soak-job-{}", number / 64), visit(v4(ports::ECHO), "closes")),
            _ if cgroups == "-" || number % 64 != 15 => (client.to_owned(), visit(v6(ports::ECHO), "resets")),
            _ => {
                let path = Path::new(cgroups).join(format!("soak-{number}.service"));
                fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
                let role = format!("within {} {}", path.display(), visit(v4(ports::ECHO), "closes"));
                cgroup = Some(path);
                (client.to_owned(), role)
            }
        }
    };
    let mut command = command(&name, &role)?;
    // One that fails as it may has no time for that.
    command.env("RUST_BACKTRACE", "0");
    if may_fail {
        command.stderr(Stdio::null());
    }
    Ok(Guest { process: command.stdin(Stdio::null()).spawn()?, cgroup, may_fail })
}

/// Plays a role in another cgroup.
pub fn within(cgroup: &str, role: &[&str]) -> Result<()> {
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").with_context(|| format!("cannot enter {cgroup}"))?;
    play(&role.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
}

/// Sends bytes and waits for their echo, then closes or resets the connection. With a name other than `-`, prints it with
/// what it is to move, and again when it has.
pub fn visit(to: SocketAddr, bytes: usize, resets: bool, name: &str) -> Result<()> {
    let say_if_named = |what: &str| if name == "-" { Ok(()) } else { say(&format!("{name} {what} {bytes}")) };
    say_if_named("begins")?;
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let sent: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
    stream.write_all(&sent)?;
    let mut received = vec![0; bytes];
    stream.read_exact(&mut received)?;
    ensure!(received == sent, "the echo differs");
    if resets {
        setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    } else {
        stream.shutdown(Shutdown::Write)?;
        ensure!(stream.read(&mut [0])? == 0, "there is more than the echo");
    }
    say_if_named("moved")
}

/// Moves bytes by TCP and UDP in a network namespace of its own, and prints what its interface has counted.
pub fn apart(bytes: usize) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("cannot run ip")?;
    ensure!(up.success(), "ip link set lo up: {up}");
    for host in [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))] {
        let listener = TcpListener::bind(host)?;
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (mut server, _) = listener.accept()?;
        client.write_all(&vec![b'x'; bytes])?;
        server.read_exact(&mut vec![0; bytes])?;
        client.shutdown(Shutdown::Write)?;
        ensure!(server.read(&mut [0])? == 0, "more came than was sent");
        drop(server);
        ensure!(client.read(&mut [0])? == 0, "something came back");
        let (receiver, sender) = (UdpSocket::bind(host)?, UdpSocket::bind(host)?);
        sender.send_to(&vec![b'x'; bytes / 2], receiver.local_addr()?)?;
        receiver.recv(&mut vec![0; bytes])?;
    }
    let devices = fs::read_to_string("/proc/self/net/dev").context("cannot read /proc/self/net/dev")?;
    let lo = devices.lines().find_map(|line| line.trim_start().strip_prefix("lo:")).context("there is no lo")?;
    say(&format!("apart moved {}", lo.split_ascii_whitespace().next().unwrap_or_default()))
}

/// Reads the page as a browser does, or as one that vanishes.
pub fn read_page(server: SocketAddr, how: u32) -> Result<()> {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {server}\r\n\r\n");
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    match how {
        // The page, and what it asks for first.
        0 => {
            stream.write_all(get("/").as_bytes())?;
            stream.read_to_end(&mut Vec::new())?;
            let mut stream = TcpStream::connect(server)?;
            stream.write_all(get("/data.json?history").as_bytes())?;
            stream.read_to_end(&mut Vec::new())?;
        }
        // It waits for ticks, and vanishes.
        1 => {
            stream.write_all(get("/data.json").as_bytes())?;
            let mut first = Vec::new();
            stream.read_to_end(&mut first)?;
            let mut stream = TcpStream::connect(server)?;
            stream.write_all(get("/data.json?after=4000000000&moved").as_bytes())?;
            sleep(Duration::from_millis(300));
        }
        // It never ends its request.
        2 => stream.write_all(b"GET /data.json?hist")?,
        // It does not read.
        3 => {
            stream.write_all(get("/data.json?history").as_bytes())?;
            sleep(Duration::from_millis(300));
            setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        }
        _ => {
            stream.write_all(get("/history.json?from=0&to=4000000000").as_bytes())?;
            stream.read_to_end(&mut Vec::new())?;
        }
    }
    Ok(())
}

/// Becomes a program that ends with the one that started it.
pub fn become_program(program: &str, arguments: &[&str]) -> Result<()> {
    let name = Path::new(program).file_name().context("a program has a name")?;
    Err(Command::new(program).arg0(name).args(arguments).exec()).with_context(|| format!("cannot run {program}"))
}
