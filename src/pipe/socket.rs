//! The listening socket, connecting to the target, and the socket options and epoll events of a pipe's sockets.

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

/// After this many seconds of silence the kernel probes whether the peer is still there, and again after each interval;
/// it ends the connection when this many probes got no answer: two minutes in all. Without our help it ends a
/// connection whose bytes are not acknowledged after net.ipv4.tcp_retries2 retransmissions, a quarter of an hour.
/// TCP_USER_TIMEOUT would be sooner, but it also ends a connection to a healthy peer that only does not read for a
/// while (tcp_probe_timer() in net/ipv4/tcp_timer.c).
const KEEPALIVE_IDLE_S: u32 = 60;
const KEEPALIVE_INTERVAL_S: u32 = 15;
const KEEPALIVE_COUNT: u32 = 4;

/// The sizes of the buffers of a bulk connection within this machine (the kernel doubles them for its own needs).
const LOCAL_RCVBUF_BYTES: usize = 1 << 21;
const LOCAL_SNDBUF_BYTES: usize = 1 << 20;

/// Listens on `port` of `address`, by default of all addresses, IPv4 and IPv6.
///
/// # Errors
/// When the port is in use or not permitted, with the address in the message.
pub fn listener(address: Option<IpAddr>, port: u16) -> Result<TcpListener> {
    let opened = match address {
        Some(address) => open(SocketAddr::new(address, port)),
        None => match open(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
            // This host has no IPv6: the kernel lacks it, or net.ipv6.conf.all.disable_ipv6 switches it off.
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
    // A restarted pipe need not wait until the connections of the last run have left TIME_WAIT.
    setsockopt(&socket, ReuseAddr, &true)?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        setsockopt(&socket, Ipv6V6Only, &false)?;
    }
    // Accepted sockets inherit these options.
    prepare(&socket)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::MAXALLOWABLE)?;
    Ok(TcpListener::from(socket))
}

/// Accepts a client; returns its socket, which does not block, and its address.
///
/// # Errors
/// Those of accept4(2): EAGAIN when no client waits.
pub fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, address) = acceptfrom_with(listener, flags).map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    let address = address.and_then(|address| SocketAddr::try_from(address).ok()).ok_or(Errno::EAFNOSUPPORT)?;
    Ok((TcpStream::from(socket), address))
}

/// Starts to connect to `address`; the socket becomes writable when the attempt has succeeded or failed.
///
/// # Errors
/// Those of socket(2), setsockopt(2) and connect(2), if the attempt fails at once. ELOOP means that `address` reaches
/// our own listener on `listening`: each connection would open the next one, until there are no descriptors left.
pub fn start_connecting(address: SocketAddr, listening: SocketAddr) -> Result<TcpStream, Errno> {
    if reaches(address, listening) {
        return Err(Errno::ELOOP);
    }
    let socket = stream_socket(&address)?;
    prepare(&socket)?;
    if address.ip().to_canonical().is_loopback() {
        use_reno(&socket);
    }
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(TcpStream::from(socket)),
        Err(errno) => Err(errno),
    }
}

/// Whether a connection to `address` reaches the listener on `listening`.
fn reaches(address: SocketAddr, listening: SocketAddr) -> bool {
    let (ip, own) = (address.ip().to_canonical(), listening.ip().to_canonical());
    let reached = if own.is_unspecified() { ip.is_loopback() || ip.is_unspecified() } else { ip == own };
    address.port() == listening.port() && reached
}

fn stream_socket(address: &SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
}

/// Makes the kernel send small writes at once, notice a peer that has vanished, and leave urgent bytes in their place
/// in the stream.
fn prepare(socket: &impl AsFd) -> Result<(), Errno> {
    setsockopt(socket, TcpNoDelay, &true)?;
    setsockopt(socket, OobInline, &true)?;
    setsockopt(socket, KeepAlive, &true)?;
    setsockopt(socket, TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
    setsockopt(socket, TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
    setsockopt(socket, TcpKeepCount, &KEEPALIVE_COUNT)
}

/// Makes a bulk connection within this machine faster. On other connections the choices of the administrator and the
/// kernel stay.
///
/// The loopback interface has no congestion, so the timers of a congestion control that paces (BBR, net/ipv4/tcp_bbr.c)
/// only cost time. Nor has it a long path to fill: with the buffers of many MB that net.ipv4.tcp_rmem lets the kernel
/// choose, the bytes have left the CPU's caches when the reader gets to them.
pub fn tune_for_loopback(socket: &TcpStream) {
    if !is_local(socket) {
        return;
    }
    // These options only add speed: the connection also works if one of them fails.
    use_reno(socket);
    // Without CAP_NET_ADMIN the kernel cuts the size down to a limit; its own choice is better than a smaller size.
    if setsockopt(socket, RcvBufForce, &LOCAL_RCVBUF_BYTES).is_err() && is_allowed("rmem_max", LOCAL_RCVBUF_BYTES) {
        let _ = setsockopt(socket, RcvBuf, &LOCAL_RCVBUF_BYTES);
    }
    if setsockopt(socket, SndBufForce, &LOCAL_SNDBUF_BYTES).is_err() && is_allowed("wmem_max", LOCAL_SNDBUF_BYTES) {
        let _ = setsockopt(socket, SndBuf, &LOCAL_SNDBUF_BYTES);
    }
}

fn is_local(socket: &TcpStream) -> bool {
    let (Ok(own), Ok(peer)) = (socket.local_addr(), socket.peer_addr()) else { return false };
    own.ip() == peer.ip() || peer.ip().to_canonical().is_loopback()
}

/// The CPU on which the kernel received the last packet (SO_INCOMING_CPU, socket(7)), if the peer is on this machine:
/// the sender ran there.
pub fn local_incoming_cpu(socket: &TcpStream) -> Option<usize> {
    if !is_local(socket) {
        return None;
    }
    usize::try_from(rustix::net::sockopt::socket_incoming_cpu(socket).ok()?).ok()
}

/// Makes Reno the congestion control: every kernel has it, and every user may choose it. Best before the socket
/// connects: BBR starts then, and a socket on which it has started goes on pacing.
fn use_reno(socket: &impl AsFd) {
    let _ = setsockopt(socket, TcpCongestion, &OsString::from("reno"));
}

/// Sends the bytes that the kernel holds back to fill a packet.
pub fn flush_corked(socket: &TcpStream) {
    // Setting TCP_NODELAY again sends them (tcp(7)).
    let _ = setsockopt(socket, TcpNoDelay, &true);
}

sockopt_impl!(
    /// SO_RCVLOWAT: the number of waiting bytes that makes a socket readable.
    RcvLowAt,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_RCVLOWAT,
    u32
);

/// Makes epoll report `socket` as readable when `bytes` bytes wait there, when its stream has ended, or when its buffer
/// has no room for more; at once if that is so already (`tcp_set_rcvlowat` in net/ipv4/tcp.c).
pub fn set_rcvlowat(socket: &TcpStream, bytes: u32) {
    // If this fails, epoll reports each packet.
    let _ = setsockopt(socket, RcvLowAt, &bytes);
}

/// Whether `limit`, a file of /proc/sys/net/core, allows a socket buffer of `bytes` bytes.
fn is_allowed(limit: &str, bytes: usize) -> bool {
    let text = fs::read_to_string(Path::new("/proc/sys/net/core").join(limit));
    text.is_ok_and(|text| text.trim_end().parse().is_ok_and(|most: usize| most >= bytes))
}

/// Whether an error means that there is no descriptor or no memory left at the moment.
pub fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
}

/// The events that mean that there is something to read: bytes, urgent bytes (TCP's URG), the end of stream.
pub const READABLE: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLPRI).union(EpollFlags::EPOLLRDHUP);

/// A socket, and the events that epoll reports for it, each once when it occurs (EPOLLET).
#[derive(Debug)]
pub struct EpollSocket {
    pub stream: TcpStream,
    token: u64,
    events: EpollFlags,
}

impl EpollSocket {
    /// A socket that epoll does not watch yet.
    pub fn new(stream: TcpStream, token: u64) -> Self {
        Self { stream, token, events: EpollFlags::empty() }
    }

    /// Watches for `events` too.
    ///
    /// # Errors
    /// When the kernel has no memory for that.
    pub fn watch(&mut self, epoll: &Epoll, events: EpollFlags) -> Result<(), Errno> {
        self.set(epoll, self.events | events | EpollFlags::EPOLLET)
    }

    /// Stops watching for `events`.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
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

/// Shows the address of an IPv4 client of a dual-stack socket as `1.2.3.4`, not as `::ffff:1.2.3.4`.
pub struct Canonical(pub SocketAddr);

impl fmt::Display for Canonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.0.ip().to_canonical(), self.0.port()).fmt(f)
    }
}
