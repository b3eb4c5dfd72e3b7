//! A target that does not answer.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen, socket,
};

/// A listener whose accept queue is full: the kernel drops what else wants to connect, as a host does that is gone.
pub struct Silent {
    pub address: SocketAddr,
    _socket: OwnedFd,
    _queued: Vec<TcpStream>,
}

impl Silent {
    pub fn on(address: SocketAddr) -> Self {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
        listen(&socket, Backlog::new(0).unwrap()).unwrap();
        let bound = getsockname::<SockaddrStorage>(socket.as_raw_fd()).unwrap();
        let port = bound.as_sockaddr_in().map(|v4| v4.port()).or(bound.as_sockaddr_in6().map(|v6| v6.port()));
        let address = SocketAddr::new(address.ip(), port.unwrap());
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            queued.push(stream);
        }
        Self { address, _socket: socket, _queued: queued }
    }
}
