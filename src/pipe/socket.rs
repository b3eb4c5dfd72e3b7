//! The listening socket, connecting to the target, and the socket options and epoll events of a pipe's sockets.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::{self, linger};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::sockopt::{
    Ipv6V6Only, KeepAlive, Linger, OobInline, RcvBuf, RcvBufForce, ReuseAddr, SndBuf, SndBufForce, TcpCongestion,
    TcpKeepCount, TcpKeepIdle, TcpKeepInterval, TcpNoDelay,
};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt, socket,
};
use nix::{setsockopt_impl, sockopt_impl};
use rustix::net::sockopt::{ip_multicast_ttl, ipv6_multicast_hops, set_ip_ttl, set_ipv6_unicast_hops};
use rustix::net::{SocketFlags, acceptfrom_with};

use crate::kernel::addresses;

/// After the idle time the kernel probes whether the peer is still there, and again after each interval; it ends the
/// connection when this many probes got no answer: two minutes in all. A connection with unacknowledged bytes ends
/// without these options, too, after net.ipv4.tcp_retries2 retransmissions, a quarter of an hour. TCP_USER_TIMEOUT
/// would be sooner, but it also ends a connection to a healthy peer that merely stops reading for a while
/// (tcp_probe_timer() in net/ipv4/tcp_timer.c).
const KEEPALIVE_IDLE_S: u32 = 60;
const KEEPALIVE_INTERVAL_S: u32 = 15;
const KEEPALIVE_COUNT: u32 = 4;

/// The sizes of the buffers of a bulk connection within this machine (the kernel doubles them for its own needs).
const LOCAL_RCVBUF_BYTES: usize = 1 << 22;
const LOCAL_SNDBUF_BYTES: usize = 1 << 20;

/// The most bytes that may wait in the receive buffer: three eighths of it. A peer that fills a buffer of a fixed size makes
/// the kernel drop packets, and shrink the window to two of them (`tcp_clamp_window` in net/ipv4/tcp_input.c).
const LOCAL_WINDOW_BYTES: u32 = 3 << 20;

/// The most descriptors that are left to the rest of the program, and at most an eighth of all.
const RESERVED_DESCRIPTORS: u64 = 256;

/// The most pipes of this host through which a connection may go: the usual time to live of a packet.
const MOST_HOPS: u8 = 64;

/// How long this host's addresses are remembered.
const ADDRESSES_LIFETIME: Duration = Duration::from_secs(5);

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
    // So a restarted pipe need not wait until the connections of the last run have left TIME_WAIT.
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

/// Why an attempt to connect failed.
#[derive(Debug)]
pub enum ConnectError {
    /// There is no descriptor or no memory at the moment.
    Shortage(Errno),
    /// The address is that of the pipe's own listener: each connection would open the next one.
    OwnListener,
    /// The connection has come round through so many pipes of this host that they must form a circle.
    Circle,
    /// What the kernel says about the address.
    Failed(io::Error),
}

impl From<Errno> for ConnectError {
    fn from(errno: Errno) -> Self {
        if is_shortage(errno) { Self::Shortage(errno) } else { Self::Failed(errno.into()) }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shortage(errno) => io::Error::from(*errno).fmt(f),
            Self::OwnListener => f.write_str("the pipe listens there itself"),
            Self::Circle => write!(f, "it came through {MOST_HOPS} pipes of this host, which forward in a circle"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

/// Starts to connect to `address` for a client from which there are `hops` left; the socket becomes writable when the
/// attempt has succeeded or failed. A `listening` address is that of the pipe's own listener.
///
/// # Errors
/// If the attempt fails at once.
pub fn start_connecting(
    address: SocketAddr,
    listening: SocketAddr,
    hops: Option<u8>,
    context: &mut SocketContext,
) -> Result<TcpStream, ConnectError> {
    if context.reaches(address, listening) {
        return Err(ConnectError::OwnListener);
    }
    if hops == Some(0) {
        return Err(ConnectError::Circle);
    }
    let socket = stream_socket(&address)?;
    if context.reserve.includes(&socket) {
        return Err(ConnectError::Shortage(Errno::EMFILE));
    }
    prepare(&socket)?;
    if let Some(hops) = hops {
        set_hops(&socket, address, hops);
    }
    if address.ip().to_canonical().is_loopback() {
        use_reno(&socket);
    }
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(TcpStream::from(socket)),
        Err(errno) => Err(errno.into()),
    }
}

/// The descriptors that a pipe leaves to the rest of the program: to the monitor, to commands, to its own messages.
///
/// The kernel always gives the lowest free number, so a high number means that all lower ones are taken.
#[derive(Debug, Clone, Copy)]
pub struct DescriptorReserve {
    from: u64,
}

impl DescriptorReserve {
    /// The upper end of the numbers that this process may have now.
    pub fn of_this_process() -> Self {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        Self { from: limit - (limit / 8).min(RESERVED_DESCRIPTORS) }
    }

    /// All numbers: there is no descriptor left for a pipe.
    #[cfg(any(test, fuzzing))]
    pub fn of_all() -> Self {
        Self { from: 0 }
    }

    /// Whether a descriptor that the kernel has just given is one of them.
    pub fn includes(self, descriptor: &impl AsRawFd) -> bool {
        u64::try_from(descriptor.as_raw_fd()).is_ok_and(|number| number >= self.from)
    }
}

/// Makes a socket send a reset when it is closed: its peer must not take the stream for whole.
pub fn reset(socket: &TcpStream) {
    // This fails if the peer has already closed the connection; then it needs no reset.
    let _ = setsockopt(socket, Linger, &linger { l_onoff: 1, l_linger: 0 });
}

/// What the sockets of one pipe need to know about this host.
#[derive(Debug)]
pub struct SocketContext {
    pub reserve: DescriptorReserve,
    own_addresses: HashSet<IpAddr>,
    addresses_read_at: Option<Instant>,
}

impl SocketContext {
    pub fn new(reserve: DescriptorReserve) -> Self {
        Self { reserve, own_addresses: HashSet::new(), addresses_read_at: None }
    }

    /// Whether an address is this host's.
    fn is_own(&mut self, ip: IpAddr) -> bool {
        if ip.is_loopback() || ip.is_unspecified() {
            return true;
        }
        if self.addresses_read_at.is_none_or(|at| at.elapsed() >= ADDRESSES_LIFETIME) {
            self.own_addresses = addresses::here();
            self.addresses_read_at = Some(Instant::now());
        }
        self.own_addresses.contains(&ip)
    }

    /// Whether a connection to `address` reaches the listener on `listening`.
    fn reaches(&mut self, address: SocketAddr, listening: SocketAddr) -> bool {
        let (ip, own) = (address.ip().to_canonical(), listening.ip().to_canonical());
        address.port() == listening.port()
            && if own.is_unspecified() {
                self.is_own(ip)
            } else {
                ip == own || ip.is_unspecified() && own.is_loopback()
            }
    }

    /// The number of pipes through which the connection of a client may still go; `None` if it comes from another host.
    ///
    /// Pipes of one host that forward in a circle, in one process or in several, would open connections until there are
    /// no descriptors left. They count down as routers do: each gives its packets a time to live that is lower by one
    /// than that of the client's. The kernel keeps that of an accepted connection where a datagram socket has its time
    /// to live for multicast (`tcp_v4_syn_recv_sock` in net/ipv4/tcp_ipv4.c, `tcp_v6_syn_recv_sock`).
    pub fn hops_left(&mut self, client: &TcpStream, address: SocketAddr) -> Option<u8> {
        if !self.is_own(address.ip().to_canonical()) {
            return None;
        }
        let received = if address.is_ipv4() { ip_multicast_ttl(client) } else { ipv6_multicast_hops(client) };
        let received = u8::try_from(received.ok()?).unwrap_or(MOST_HOPS);
        Some(received.min(MOST_HOPS).saturating_sub(1))
    }
}

fn set_hops(socket: &OwnedFd, address: SocketAddr, hops: u8) {
    // If this fails, the count begins again.
    let _ = if address.is_ipv4() { set_ip_ttl(socket, hops.into()) } else { set_ipv6_unicast_hops(socket, Some(hops)) };
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

/// Makes a bulk connection within this machine faster. Other connections keep the settings of the administrator and the
/// kernel.
///
/// The loopback interface has no congestion, so the timers of a congestion control that paces (BBR, net/ipv4/tcp_bbr.c)
/// only cost time. It has no long path to fill either: with the buffers of many MB that net.ipv4.tcp_rmem lets the
/// kernel choose, the bytes have left the CPU's caches when the reader gets to them.
pub fn tune_for_loopback(socket: &TcpStream) {
    if !is_local(socket) {
        return;
    }
    // These options only add speed: the connection also works if one of them fails.
    use_reno(socket);
    // Without CAP_NET_ADMIN the kernel cuts the size down to a limit; its own choice is better than a smaller size.
    if setsockopt(socket, RcvBufForce, &LOCAL_RCVBUF_BYTES).is_ok()
        || is_allowed("rmem_max", LOCAL_RCVBUF_BYTES) && setsockopt(socket, RcvBuf, &LOCAL_RCVBUF_BYTES).is_ok()
    {
        let _ = setsockopt(socket, WindowClamp, &LOCAL_WINDOW_BYTES);
    }
    if setsockopt(socket, SndBufForce, &LOCAL_SNDBUF_BYTES).is_err() && is_allowed("wmem_max", LOCAL_SNDBUF_BYTES) {
        let _ = setsockopt(socket, SndBuf, &LOCAL_SNDBUF_BYTES);
    }
}

fn is_local(socket: &TcpStream) -> bool {
    let (Ok(own), Ok(peer)) = (socket.local_addr(), socket.peer_addr()) else { return false };
    own.ip() == peer.ip() || peer.ip().to_canonical().is_loopback()
}

/// Makes Reno the congestion control: every kernel has it, and every user may choose it. Call it before the socket
/// connects, if possible: BBR starts then, and a socket on which it has started goes on pacing.
fn use_reno(socket: &impl AsFd) {
    let _ = setsockopt(socket, TcpCongestion, &OsString::from("reno"));
}

/// Sends the bytes that the kernel holds back to fill a packet.
pub fn flush_corked(socket: &TcpStream) {
    // Setting TCP_NODELAY again sends them (tcp(7)).
    let _ = setsockopt(socket, TcpNoDelay, &true);
}

sockopt_impl!(
    /// TCP_WINDOW_CLAMP, tcp(7): the most bytes of the receive window.
    WindowClamp,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_WINDOW_CLAMP,
    u32
);

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
fn is_shortage(errno: Errno) -> bool {
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

    /// Watches for `events` too; always for errors, even without any.
    ///
    /// # Errors
    /// When the kernel has no memory for that.
    pub fn watch(&mut self, epoll: &Epoll, events: EpollFlags) -> Result<(), Errno> {
        self.set(epoll, self.events | events | EpollFlags::EPOLLET)
    }

    /// Makes epoll report events with another token, from now on and once for the present state of the socket.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn rename(&mut self, epoll: &Epoll, token: u64) -> Result<(), Errno> {
        self.token = token;
        if self.events.is_empty() {
            return Ok(());
        }
        epoll.modify(&self.stream, &mut EpollEvent::new(self.events, token))
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
