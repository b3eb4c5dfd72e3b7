//! The processes that make traffic: this program, started again with a role as its arguments.
//!
//! A role prints "ready" when it is ready, and its result at the end. It ends with the program that started it.

use std::ffi::CString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bwmon::kernel::netlink::{Netlink, protocol};
use nix::sys::prctl::{set_name, set_pdeathsig};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::signal::Signal;

mod connections;
mod guests;
mod packets;

/// The first argument of a process with a role.
pub const ROLE: &str = "role";

/// IPCTNL_MSG_CT_GET of NFNL_SUBSYS_CTNETLINK (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const CONNTRACK_GET: u16 = 1 << 8 | 1;
/// The bytes that a transfer writes at a time: with a rate, and as fast as it can.
const PIECE: usize = 16 * 1024;
const LARGE_PIECE: usize = 128 * 1024;
/// How long to wait for a datagram's echo.
const ECHO_TIMEOUT: Duration = Duration::from_millis(200);

/// The command that starts a role in a process whose argv[0] is `name`.
pub fn command(name: &str, role: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.arg0(name).arg(ROLE).args(role.split(' '));
    Ok(command)
}

/// Plays a role to its end.
pub fn play(words: &[String]) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("cannot tie a role to its parent")?;
    // bandwhich shows processes by this name.
    set_name(&CString::new(std::env::args().next().unwrap_or_default())?).context("cannot name a process")?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", port] => serve(port.parse()?),
        ["send", to, bytes, rate] => send(to.parse()?, bytes.parse()?, rate.parse()?),
        ["receive", from, bytes, rate, hold_ms] => {
            receive(from.parse()?, bytes.parse()?, rate.parse()?, Duration::from_millis(hold_ms.parse()?))
        }
        ["flood", to, for_s] => flood(to.parse()?, seconds(for_s)?),
        ["echo-datagrams", port] => echo_datagrams(port.parse()?),
        ["datagrams", to, count, how] => datagrams(to.parse()?, count.parse()?, how == "connected"),
        ["echo", port] => connections::echo(port.parse()?),
        ["hold", to, count] => connections::hold(to.parse()?, count.parse()?),
        ["exchange", to] => connections::exchange(to.parse()?),
        ["storm", to, held, rate, after_s, for_s] => {
            connections::storm(to.parse()?, held.parse()?, rate.parse()?, seconds(after_s)?, seconds(for_s)?)
        }
        ["come-and-go", rate, for_s, cgroups] => guests::come_and_go(rate.parse()?, seconds(for_s)?, cgroups),
        ["within", cgroup, ref role @ ..] => guests::within(cgroup, role),
        ["visit", to, bytes, end, name, _] => guests::visit(to.parse()?, bytes.parse()?, end == "resets", name),
        ["apart", bytes, _] => guests::apart(bytes.parse()?),
        ["read-page", server, how] => guests::read_page(server.parse()?, how.parse()?),
        ["become", program, ref arguments @ ..] => guests::become_program(program, arguments),
        ["one-by-one", count, name, ref role @ ..] => one_by_one(count.parse()?, name, &role.join(" ")),
        ["fork-storm", after_s, for_s, name, ref role @ ..] => {
            fork_storm(seconds(after_s)?, seconds(for_s)?, name, &role.join(" "))
        }
        ["repeat", program, ref arguments @ ..] => repeat(program, arguments),
        ["dump"] => dump(),
        ["spin"] => spin(),
        ["packets", protocol, kind, for_ms] => {
            packets::exchange(protocol, kind, Duration::from_millis(for_ms.parse()?))
        }
        _ => bail!("no such role: {}", words.join(" ")),
    }
}

fn seconds(word: &str) -> Result<Duration> {
    Ok(Duration::from_secs(word.parse()?))
}

fn say(what: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{what}").and_then(|()| stdout.flush()).context("cannot write to stdout")
}

/// A server for transfers, IPv4 and IPv6 on one socket. The first line of each client is an order.
fn serve(port: u16) -> Result<()> {
    let listener = connections::listen(port)?;
    say("ready")?;
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let serving = std::thread::Builder::new().stack_size(256 * 1024).spawn(move || serve_one(stream));
        serving.context("cannot start a thread")?;
    }
    Ok(())
}

fn serve_one(mut stream: TcpStream) -> Result<()> {
    let mut order = Vec::new();
    let mut byte = [0];
    while order.last() != Some(&b'\n') {
        stream.read_exact(&mut byte)?;
        order.push(byte[0]);
    }
    let order = String::from_utf8(order)?;
    match order.split_ascii_whitespace().collect::<Vec<_>>()[..] {
        // The client waits for a byte after the data, so that its end is not a reset.
        ["take", bytes] => {
            take(&mut stream, bytes.parse()?)?;
            stream.write_all(b"!")?;
        }
        ["give", bytes, rate] => {
            give(&mut stream, bytes.parse()?, rate.parse()?)?;
            stream.read_exact(&mut byte)?;
        }
        _ => bail!("no such order: {order}"),
    }
    Ok(())
}

/// Writes `bytes` bytes at `rate` bytes per second, or as fast as it can if that is 0.
fn give(stream: &mut TcpStream, bytes: u64, rate: u64) -> Result<()> {
    let piece = vec![b'x'; if rate == 0 { LARGE_PIECE } else { PIECE }];
    let start = Instant::now();
    let mut given = 0;
    while given < bytes {
        let length = piece.len().min(usize::try_from(bytes - given)?);
        stream.write_all(&piece[..length])?;
        given += length as u64;
        if rate > 0 {
            sleep_until(start + Duration::from_secs_f64(given as f64 / rate as f64));
        }
    }
    Ok(())
}

/// Reads `bytes` bytes, or up to the end of stream.
fn take(stream: &mut TcpStream, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; LARGE_PIECE];
    let mut taken = 0;
    while taken < bytes {
        match stream.read(&mut buffer)? {
            0 => break,
            length => taken += length as u64,
        }
    }
    Ok(())
}

fn send(to: SocketAddr, bytes: u64, rate: u64) -> Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.write_all(format!("take {bytes}\n").as_bytes())?;
    give(&mut stream, bytes, rate)?;
    Ok(stream.read_exact(&mut [0])?)
}

fn receive(from: SocketAddr, bytes: u64, rate: u64, hold: Duration) -> Result<()> {
    let mut stream = TcpStream::connect(from)?;
    stream.write_all(format!("give {bytes} {rate}\n").as_bytes())?;
    take(&mut stream, bytes)?;
    stream.write_all(b"!")?;
    sleep(hold);
    Ok(())
}

/// Sends as fast as it can, and prints its rate in bytes per second.
fn flood(to: SocketAddr, time: Duration) -> Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.write_all(format!("take {}\n", u64::MAX).as_bytes())?;
    let piece = vec![b'x'; LARGE_PIECE];
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < time {
        stream.write_all(&piece)?;
        sent += piece.len();
    }
    say(&format!("{}", sent as f64 / start.elapsed().as_secs_f64()))
}

/// Sends each datagram back, from one unconnected socket.
fn echo_datagrams(port: u16) -> Result<()> {
    let socket = UdpSocket::bind(("::", port))?;
    say("ready")?;
    let mut buffer = [0; 65_536];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        // This fails if the client is gone.
        let _ = socket.send_to(&buffer[..length], from);
    }
}

/// Sends datagrams of 1,000 bytes, 2 ms apart, and waits for the echo of each.
fn datagrams(to: SocketAddr, count: u32, connected: bool) -> Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(ECHO_TIMEOUT))?;
    if connected {
        socket.connect(to)?;
    }
    for _ in 0..count {
        let datagram = [b'x'; 1000];
        if connected {
            socket.send(&datagram)?
        } else {
            socket.send_to(&datagram, to)?
        };
        let _ = socket.recv(&mut [0; 2000]);
        sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Plays a role in `count` processes, one after the other.
fn one_by_one(count: u32, name: &str, role: &str) -> Result<()> {
    let mut command = command(name, role)?;
    let failed = (0..count).filter(|_| !command.status().is_ok_and(|status| status.success())).count();
    say(&format!("{} {failed}", count as usize - failed))
}

/// Plays a role in one new process after the other, two at a time per core, for `time`. Begins after `after`.
fn fork_storm(after: Duration, time: Duration, name: &str, role: &str) -> Result<()> {
    say("ready")?;
    sleep(after);
    let parallel = 2 * std::thread::available_parallelism()?.get();
    let until = Instant::now() + time;
    let (mut done, mut failed) = (0, 0);
    std::thread::scope(|scope| -> Result<()> {
        let storm = || -> Result<(u32, u32)> {
            let mut command = command(name, role)?;
            let (mut done, mut failed) = (0, 0);
            while Instant::now() < until {
                if command.status()?.success() { done += 1 } else { failed += 1 }
            }
            Ok((done, failed))
        };
        let threads: Vec<_> = (0..parallel).map(|_| scope.spawn(storm)).collect();
        for thread in threads {
            let (its_done, its_failed) = thread.join().map_err(|_| anyhow!("a thread failed"))??;
            (done, failed) = (done + its_done, failed + its_failed);
        }
        Ok(())
    })?;
    say(&format!("{done} {failed}"))
}

/// Runs a command each second and discards its output. After each run, prints the peak memory of the largest run so
/// far, in KiB.
fn repeat(program: &str, arguments: &[&str]) -> Result<()> {
    each_second(|| {
        let status = Command::new(program).args(arguments).stdout(std::process::Stdio::null()).status();
        status.with_context(|| format!("cannot run {program}"))?;
        say(&getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss().to_string())
    })
}

/// Requests a dump of conntrack's table each second and discards the messages.
fn dump() -> Result<()> {
    each_second(|| {
        let mut socket = Netlink::open(protocol::NETFILTER, 0)?;
        // A struct nfgenmsg of zeros: all families.
        socket.begin_dump(CONNTRACK_GET, &[0; 4])?;
        while !socket.read_dump(Instant::now() + Duration::from_secs(60), |_| {})? {}
        say("dumped")
    })
}

fn spin() -> Result<()> {
    loop {
        std::hint::spin_loop();
    }
}

fn each_second(mut action: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    for second in 1.. {
        action()?;
        sleep_until(start + Duration::from_secs(second));
    }
    Ok(())
}

fn sleep_until(at: Instant) {
    sleep(at.saturating_duration_since(Instant::now()));
}
