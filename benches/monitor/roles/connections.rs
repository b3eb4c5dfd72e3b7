//! Roles with many connections: held ones, and short ones.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Backlog, setsockopt, sockopt};

use super::{say, sleep_until};

/// The most connections that wait to be accepted; the standard library's 128 are too few in a storm.
const BACKLOG: i32 = 4096;
/// The bytes of a round trip on a held connection, and on a short one.
const HELD_BYTES: usize = 1000;
const SHORT_BYTES: usize = 200;
/// One in this many held connections moves data.
const ONE_IN: usize = 100;
/// The number of threads of a storm. Each connects to its own loopback address, so that local ports do not run out.
const THREADS: u8 = 4;
/// How long to wait for a reply.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A listener at a port, for IPv4 and IPv6.
pub fn listen(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind(("::", port)).with_context(|| format!("cannot listen at port {port}"))?;
    nix::sys::socket::listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

/// Sends back all bytes that come, on any number of connections.
pub fn echo(port: u16) -> Result<()> {
    let listener = listen(port)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let readable = |fd: RawFd| EpollEvent::new(EpollFlags::EPOLLIN, fd.unsigned_abs().into());
    epoll.add(&listener, readable(listener.as_raw_fd()))?;
    let mut streams: HashMap<RawFd, TcpStream> = HashMap::new();
    let mut events = [EpollEvent::empty(); 256];
    let mut buffer = [0; 65_536];
    say("ready")?;
    loop {
        let ready = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..ready] {
            let fd = RawFd::try_from(event.data())?;
            match streams.get_mut(&fd) {
                None => {
                    let Ok((stream, _)) = listener.accept() else { continue };
                    epoll.add(&stream, readable(stream.as_raw_fd()))?;
                    streams.insert(stream.as_raw_fd(), stream);
                }
                Some(stream) => match stream.read(&mut buffer) {
                    Ok(length @ 1..) if stream.write_all(&buffer[..length]).is_ok() => {}
                    // Closing it takes it out of the epoll set.
                    _ => drop(streams.remove(&fd)),
                },
            }
        }
    }
}

/// Holds `count` connections; each second one in a hundred moves data.
pub fn hold(to: SocketAddr, count: usize) -> Result<()> {
    let mut held = connect(to, count)?;
    say("ready")?;
    loop {
        for stream in held.iter_mut().step_by(ONE_IN) {
            round_trip(stream, HELD_BYTES)?;
        }
        sleep(Duration::from_secs(1));
    }
}

fn connect(to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let connect = |_| TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"));
    (0..count).map(connect).collect()
}

fn round_trip(stream: &mut TcpStream, bytes: usize) -> Result<()> {
    stream.write_all(&vec![b'x'; bytes])?;
    Ok(stream.read_exact(&mut vec![0; bytes])?)
}

/// One short connection. It ends with a reset, which leaves no port in TIME_WAIT.
pub fn exchange(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    round_trip(&mut stream, SHORT_BYTES)?;
    Ok(setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?)
}

/// Makes `rate` short connections a second, or as many as it can, while it holds `held` others. Begins after `after`.
pub fn storm(to: SocketAddr, held: usize, rate: f64, after: Duration, time: Duration) -> Result<()> {
    let _held = connect(to, held)?;
    say("ready")?;
    sleep(after);
    let interval = Duration::from_secs_f64(f64::from(THREADS) / rate);
    let start = Instant::now();
    let (mut done, mut failed) = (0, 0);
    std::thread::scope(|scope| -> Result<()> {
        let one = |thread: u8| {
            let to = match to.ip() {
                IpAddr::V4(v4) if v4.is_loopback() => (Ipv4Addr::new(127, 0, 0, thread + 1), to.port()).into(),
                _ => to,
            };
            let (mut done, mut failed) = (0, 0);
            while start.elapsed() < time {
                sleep_until(start + interval * (done + failed));
                if exchange(to).is_ok() { done += 1 } else { failed += 1 }
            }
            (done, failed)
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || one(thread))).collect();
        for thread in threads {
            let (its_done, its_failed) = thread.join().map_err(|_| anyhow!("a thread failed"))?;
            (done, failed) = (done + its_done, failed + its_failed);
        }
        Ok(())
    })?;
    say(&format!("{done} {failed}"))
}
