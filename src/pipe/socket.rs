//! The socket that clients connect to, and what every socket of a pipe is told.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::sockopt::{
    Ipv6V6Only, KeepAlive, OobInline, RcvBuf, RcvBufForce, ReuseAddr, SndBuf, SndBufForce, TcpCongestion, TcpKeepCount,
    TcpKeepIdle, TcpKeepInterval, TcpNoDelay,
};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt, socket,
};
use nix::{setsockopt_impl, sockopt_impl};
use rustix::net::{SocketFlags, acceptfrom_with};

/// Seconds without a word before the kernel asks whether a peer is still there, from one question to the next, and how
/// many go unanswered before the peer counts as gone: two minutes in all. Bytes that are not acknowledged end a connection
/// after net.ipv4.tcp_retries2 tries, a quarter of an hour, without our doing. TCP_USER_TIMEOUT would be sooner, but it
/// also ends a connection whose peer is well and only does not read for a while (tcp_probe_timer() in
/// net/ipv4/tcp_timer.c).
const KEEPALIVE_IDLE_S: u32 = 60;
const KEEPALIVE_INTERVAL_S: u32 = 15;
const KEEPALIVE_COUNT: u32 = 4;

/// What the buffers of a bulk connection within this machine are to hold (the kernel doubles it for its own needs).
const LOCAL_RECEIVED_BYTES: usize = 1 << 21;
const LOCAL_SENT_BYTES: usize = 1 << 20;

/// Listens on `port` of `address`, by default of all addresses, IPv4 and IPv6.
///
/// # Errors
/// When the port is in use or not allowed, with the address in the message.
pub fn listener(address: Option<IpAddr>, port: u16) -> Result<TcpListener> {
    let opened = match address {
        Some(address) => open(SocketAddr::new(address, port)),
        None => match open(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
            // No IPv6 here: not in the kernel, or switched off by net.ipv6.conf.all.disable_ipv6.
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
            opened => opened,
        },
    };
    opened.map_err(io::Error::from).with_context(|| match address {
        Some(address) => format!("cannot listen on {}", SocketAddr::new(address, port)),
        None => format!("cannot listen on port {port}"),
    })
}

fn open(address: SocketAddr) -> Result<TcpListener, Errno> {
    let socket = stream_socket(&address)?;
    // A restart need not wait for the connections of the run before to leave TIME_WAIT.
    setsockopt(&socket, ReuseAddr, &true)?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        setsockopt(&socket, Ipv6V6Only, &false)?;
    }
    // What is accepted inherits these.
    prepare(&socket)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::MAXALLOWABLE)?;
    Ok(TcpListener::from(socket))
}

/// Accepts a client, with its address. Its socket does not block.
///
/// # Errors
/// The system call's: EAGAIN when nobody waits.
pub fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, address) = acceptfrom_with(listener, flags).map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    let address = address.and_then(|address| SocketAddr::try_from(address).ok()).ok_or(Errno::EAFNOSUPPORT)?;
    Ok((TcpStream::from(socket), address))
}

/// Begins to connect to `address`; the socket becomes writable when that is decided. ELOOP means that it is our own
/// listener, `listening`: that connection would beget the next, until the descriptors are used up.
///
/// # Errors
/// The system call's, when it is decided at once.
pub fn connecting(address: SocketAddr, listening: SocketAddr) -> Result<TcpStream, Errno> {
    if is_same(address, listening) {
        return Err(Errno::ELOOP);
    }
    let socket = stream_socket(&address)?;
    prepare(&socket)?;
    if address.ip().to_canonical().is_loopback() {
        do_not_pace(&socket);
    }
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(TcpStream::from(socket)),
        Err(errno) => Err(errno),
    }
}

/// Whether who connects to `address` reaches the listener on `listening`.
fn is_same(address: SocketAddr, listening: SocketAddr) -> bool {
    let (ip, own) = (address.ip().to_canonical(), listening.ip().to_canonical());
    let reached = if own.is_unspecified() { ip.is_loopback() || ip.is_unspecified() } else { ip == own };
    address.port() == listening.port() && reached
}

fn stream_socket(address: &SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
}

/// Small pieces go at once, a peer that vanished is noticed, and urgent bytes stay in their place in the stream.
fn prepare(socket: &impl AsFd) -> Result<(), Errno> {
    setsockopt(socket, TcpNoDelay, &true)?;
    setsockopt(socket, OobInline, &true)?;
    setsockopt(socket, KeepAlive, &true)?;
    setsockopt(socket, TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
    setsockopt(socket, TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
    setsockopt(socket, TcpKeepCount, &KEEPALIVE_COUNT)
}

/// Makes a bulk connection within this machine fast; elsewhere the administrator's and the kernel's choices stay.
///
/// On the loopback interface there is no congestion, and the timers of a congestion control that paces (BBR,
/// net/ipv4/tcp_bbr.c) only cost. Nor is there a long way to be filled with bytes: with the buffers of many MB that
/// net.ipv4.tcp_rmem lets the kernel choose, bytes have left the processor's caches when the reader gets to them.
pub fn ease_locally(socket: &TcpStream) {
    if !is_local(socket) {
        return;
    }
    // All of it is for speed: the bytes go without it too.
    do_not_pace(socket);
    // A user without CAP_NET_ADMIN is held to a limit, and below that size the kernel's choice is better.
    if setsockopt(socket, RcvBufForce, &LOCAL_RECEIVED_BYTES).is_err() && is_allowed("rmem_max", LOCAL_RECEIVED_BYTES) {
        let _ = setsockopt(socket, RcvBuf, &LOCAL_RECEIVED_BYTES);
    }
    if setsockopt(socket, SndBufForce, &LOCAL_SENT_BYTES).is_err() && is_allowed("wmem_max", LOCAL_SENT_BYTES) {
        let _ = setsockopt(socket, SndBuf, &LOCAL_SENT_BYTES);
    }
}

fn is_local(socket: &TcpStream) -> bool {
    let (Ok(own), Ok(peer)) = (socket.local_addr(), socket.peer_addr()) else { return false };
    own.ip() == peer.ip() || peer.ip().to_canonical().is_loopback()
}

/// The processor on which the last packet came in (SO_INCOMING_CPU, socket(7)), if it came from within this machine: where
/// the sender ran then.
pub fn local_incoming_processor(socket: &TcpStream) -> Option<usize> {
    if !is_local(socket) {
        return None;
    }
    usize::try_from(rustix::net::sockopt::socket_incoming_cpu(socket).ok()?).ok()
}

/// Leaves congestion to Reno, which is part of every kernel and allowed to everyone. A socket on which BBR has begun, as it
/// does when the connection is made, goes on pacing: say it before.
fn do_not_pace(socket: &impl AsFd) {
    let _ = setsockopt(socket, TcpCongestion, &OsString::from("reno"));
}

/// Sends what was kept back to fill a packet.
pub fn push(socket: &TcpStream) {
    // Saying it again is what sends it (tcp(7)).
    let _ = setsockopt(socket, TcpNoDelay, &true);
}

sockopt_impl!(
    /// What has to wait at a socket to make it readable.
    RcvLowAt,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_RCVLOWAT,
    u32
);

/// Has epoll tell that `socket` is readable when so many bytes wait, when it is at its end, or when it has no room for more:
/// at once if that is so already (`tcp_set_rcvlowat` in net/ipv4/tcp.c).
pub fn wake_at(socket: &TcpStream, bytes: u32) {
    // If that fails it tells at each packet.
    let _ = setsockopt(socket, RcvLowAt, &bytes);
}

/// Whether a limit of socket buffers, a file of /proc/sys/net/core, allows one of `bytes`.
fn is_allowed(limit: &str, bytes: usize) -> bool {
    let text = fs::read_to_string(Path::new("/proc/sys/net/core").join(limit));
    text.is_ok_and(|text| text.trim_end().parse().is_ok_and(|most: usize| most >= bytes))
}

/// Whether an error means that the machine has no descriptor or memory left just now.
pub fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
}

/// What tells that there is something to read: bytes, urgent bytes (TCP's URG), the end.
pub const READABLE: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLPRI).union(EpollFlags::EPOLLRDHUP);

/// A socket, and what epoll is to tell about it: each thing once when it comes about (EPOLLET).
#[derive(Debug)]
pub struct Watched {
    pub stream: TcpStream,
    token: u64,
    events: EpollFlags,
}

impl Watched {
    /// A socket that epoll does not know yet.
    pub fn new(stream: TcpStream, token: u64) -> Self {
        Self { stream, token, events: EpollFlags::empty() }
    }

    /// Watches for `events` too.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn watch(&mut self, epoll: &Epoll, events: EpollFlags) -> Result<(), Errno> {
        self.set(epoll, self.events | events | EpollFlags::EPOLLET)
    }

    /// Watches no more for `events`.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn ignore(&mut self, epoll: &Epoll, events: EpollFlags) -> Result<(), Errno> {
        self.set(epoll, self.events - events)
    }

    fn set(&mut self, epoll: &Epoll, events: EpollFlags) -> Result<(), Errno> {
        if events == self.events {
            return Ok(());
        }
        let mut event = EpollEvent::new(events, self.token);
        if self.events.is_empty() {
            epoll.add(&self.stream, event)?;
        } else {
            epoll.modify(&self.stream, &mut event)?;
        }
        self.events = events;
        Ok(())
    }
}

/// A client's address as people write it: an IPv4 client of a dual-stack socket is `1.2.3.4`, not `::ffff:1.2.3.4`.
pub struct Canonical(pub SocketAddr);

impl fmt::Display for Canonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.0.ip().to_canonical(), self.0.port()).fmt(f)
    }
}
