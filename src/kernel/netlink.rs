//! Netlink messages, which have a header, a payload and attributes; and the socket that carries them (netlink(7)).
//!
//! ```text
//! nlmsghdr { len: u32, type: u16, flags: u16, seq: u32, pid: u32 }   in host byte order, 16 bytes
//! nlattr   { len: u16, type: u16 }                                   followed by the value, padded to 4 bytes
//! ```
//! The kernel's side is net/netlink/af_netlink.c and include/uapi/linux/netlink.h.
//!
//! Some sockets are in network namespaces that other users own, who may send netlink messages there. So a socket hears the
//! kernel alone, and no wait for it is endless.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, connect, recvmsg, sendto, setsockopt, sockopt};
use nix::sys::time::TimeVal;
pub use rustix::net::netlink as protocol;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// NETLINK_ROUTE, which is 0: no number, as rustix has it.
pub(crate) const ROUTE: Option<rustix::net::Protocol> = None;

/// NLM_F_REQUEST: the flag of every request.
const REQUEST: u16 = 0x01;
/// NLM_F_ROOT | NLM_F_MATCH: the flags of a request for a whole table.
const DUMP: u16 = 0x300;

/// The size of struct nlmsghdr.
const HEADER: usize = 16;
/// NLMSG_ERROR: an error number, negative, or 0 for success.
const ERROR: u16 = 2;
/// NLMSG_DONE: the end of a dump; also the type of every message of the connector.
pub(crate) const DONE: u16 = 3;
/// NLA_F_NESTED: the value consists of attributes.
pub(crate) const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
const TYPE_FLAGS: u16 = 0xc000;
/// In bytes. The kernel fills the datagrams of a dump up to 32 KiB, even if there is room for more.
const BUFFER: usize = 32 * 1024;
/// The longest wait for a reply, in seconds. The kernel makes a reply while the request is sent or the reply is read, so a wait means
/// that the reply is lost.
const LONGEST_WAIT: i64 = 1;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The sequence number of the request to which it replies; 0 for an event.
    pub sequence: u32,
    /// The bytes after the header.
    pub payload: &'a [u8],
}

/// The messages of a datagram. Stops at the first whose length is invalid.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(datagram, 0)? as usize;
        let payload = datagram.get(HEADER..length)?;
        let message = Message {
            kind: u16_at(datagram, 4)?,
            flags: u16_at(datagram, 6)?,
            sequence: u32_at(datagram, 8)?,
            payload,
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes of a payload, each as its type, without flags, and its value. Stops at the first whose length is
/// invalid.
pub(crate) fn attributes(mut payload: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(payload, 0)?);
        let value = payload.get(4..length)?;
        let kind = u16_at(payload, 2)? & !TYPE_FLAGS;
        payload = payload.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The number in host byte order at `offset`.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..offset + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// The number in host byte order at `offset`.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The number in host byte order at `offset`.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..offset + 8)?.try_into().ok().map(u64::from_ne_bytes)
}

/// Appends an attribute and its padding to `message`.
pub(crate) fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// A netlink socket to the kernel.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    /// The number of the last request. The first one is random, so that nobody else knows it.
    sequence: u32,
    /// The number of the dump whose end has not been read.
    dump: Option<u32>,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace, for one of the protocols in [`protocol`] or `ROUTE`, and
    /// subscribes it to the multicast groups of the mask `groups`: bit 0 is group 1.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2): EPROTONOSUPPORT where the kernel lacks the protocol, EPERM where this user may
    /// not subscribe to a group.
    pub fn open(protocol: impl Into<Option<rustix::net::Protocol>>, groups: u32) -> nix::Result<Self> {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol.into())
            .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        // The kernel's own port is 0: from now on it refuses the messages that others send to this socket
        // (netlink_getsockbyportid).
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(LONGEST_WAIT, 0))?;
        let sequence = RandomState::new().build_hasher().finish() as u32;
        Ok(Self { fd, sequence, dump: None, buffer: Vec::new() })
    }

    /// Sets the size of the receive buffer, in bytes. For users other than root the kernel limits it to
    /// net.core.rmem_max.
    pub(crate) fn set_receive_buffer(&self, bytes: usize) {
        // A smaller buffer than requested is no error: if it is too small, reading fails with ENOBUFS.
        let _ = setsockopt(&self.fd, sockopt::RcvBufForce, &bytes)
            .or_else(|_| setsockopt(&self.fd, sockopt::RcvBuf, &bytes));
    }

    /// Sends a message, and does not wait for a reply.
    ///
    /// # Errors
    /// EMSGSIZE where it is too long, or the error of send(2).
    pub(crate) fn send(&self, kind: u16, flags: u16, payload: &[u8]) -> nix::Result<()> {
        let length = u32::try_from(HEADER + payload.len()).map_err(|_| Errno::EMSGSIZE)?;
        let mut message = Vec::with_capacity(HEADER + payload.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(payload);
        sendto(self.fd.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Sends a request and calls `visit` with the message of the reply.
    ///
    /// # Errors
    /// EBUSY while a dump has not been read to its end, since its messages may come before the reply; the kernel's error for the
    /// request (ENOENT: there is no such object; EPERM), that of send(2) or recv(2), or ETIMEDOUT where no reply comes.
    pub fn request(&mut self, kind: u16, payload: &[u8], mut visit: impl FnMut(Message<'_>)) -> nix::Result<()> {
        if self.is_dumping() {
            return Err(Errno::EBUSY);
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.send(kind, REQUEST, payload)?;
        loop {
            let length = self.receive(MsgFlags::empty())?;
            // Other messages are events, or the rest of an earlier reply.
            let mut replies = messages(self.buffer.get(..length).ok_or(Errno::EMSGSIZE)?)
                .filter(|message| message.sequence == self.sequence);
            if let Some(message) = replies.next() {
                error_in(&message)?;
                if message.kind != ERROR {
                    visit(message);
                }
                return Ok(());
            }
        }
    }

    /// Requests a whole table, of which [`read_dump`](Self::read_dump) reads the messages. The earlier one must have been
    /// read to its end.
    ///
    /// # Errors
    /// EBUSY where the kernel is not done with the earlier one, or the error of send(2).
    pub fn begin_dump(&mut self, kind: u16, payload: &[u8]) -> nix::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(kind, REQUEST | DUMP, payload)?;
        self.dump = Some(self.sequence);
        Ok(())
    }

    /// Whether the table that was requested last has not been read to its end.
    pub fn is_dumping(&self) -> bool {
        self.dump.is_some()
    }

    /// Calls `visit` with the messages of the table that was requested, until all of it or the time of `deadline` has come.
    /// Returns whether the table is complete; if not, the next call goes on.
    ///
    /// # Errors
    /// The kernel's error for the request (EPERM), that of recv(2), or ETIMEDOUT where no message comes.
    pub fn read_dump(&mut self, deadline: Instant, mut visit: impl FnMut(Message<'_>)) -> nix::Result<bool> {
        let Some(sequence) = self.dump else { return Ok(true) };
        while Instant::now() < deadline {
            let received = self.receive(MsgFlags::empty());
            if received == Err(Errno::ETIMEDOUT) {
                // Its end is lost.
                self.dump = None;
            }
            let length = received?;
            for message in messages(self.buffer.get(..length).ok_or(Errno::EMSGSIZE)?) {
                if message.sequence != sequence {
                    continue;
                }
                if message.kind == DONE || message.kind == ERROR {
                    self.dump = None;
                    return error_in(&message).map(|()| true);
                }
                visit(message);
            }
        }
        Ok(false)
    }

    /// Reads at most `most` datagrams that wait, without waiting for more, and calls `visit` with their messages.
    /// Returns the number of datagrams.
    ///
    /// # Errors
    /// ENOBUFS: the receive buffer was full and the kernel dropped messages. The next call goes on reading.
    pub(crate) fn events(&mut self, most: usize, mut visit: impl FnMut(Message<'_>)) -> nix::Result<usize> {
        for read in 0..most {
            let length = match self.receive(MsgFlags::MSG_DONTWAIT) {
                Err(Errno::ETIMEDOUT) => return Ok(read),
                received => received?,
            };
            messages(self.buffer.get(..length).ok_or(Errno::EMSGSIZE)?).for_each(&mut visit);
        }
        Ok(most)
    }

    /// Receives a datagram; one that is not from the kernel has the length 0.
    fn receive(&mut self, flags: MsgFlags) -> nix::Result<usize> {
        self.buffer.resize(BUFFER, 0);
        loop {
            let mut buffer = [IoSliceMut::new(&mut self.buffer)];
            let flags = flags | MsgFlags::MSG_TRUNC;
            match recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut buffer, None, flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT),
                Ok(received) => {
                    // Others can send to a group to which this socket subscribes.
                    let from_kernel = received.address.is_some_and(|sender| sender.pid() == 0);
                    return Ok(if from_kernel { received.bytes } else { 0 });
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The error that a message reports, if it is one that ends a reply: both types begin with an error number.
fn error_in(message: &Message<'_>) -> nix::Result<()> {
    match u32_at(message.payload, 0).map(u32::cast_signed) {
        Some(code @ ..0) if matches!(message.kind, ERROR | DONE) => Err(Errno::from_raw(code.wrapping_neg())),
        None if message.kind == ERROR => Err(Errno::EPROTO),
        _ => Ok(()),
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((HEADER as u32 + payload.len() as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(2u16.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_and_attributes_are_parsed() {
        let mut payload = Vec::new();
        push_attribute(&mut payload, 7, b"abc");
        push_attribute(&mut payload, 0x8003, b"");
        let mut datagram = message(20, 5, &payload);
        datagram.extend(message(3, 5, &[]));
        let found: Vec<_> = messages(&datagram).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].kind, found[0].flags, found[0].sequence), (20, 2, 5));
        let attributes: Vec<_> = attributes(found[0].payload).collect();
        assert_eq!(attributes, [(7, &b"abc"[..]), (3, &b""[..])]);
    }

    #[test]
    fn parsing_stops_at_a_length_beyond_the_datagram_or_below_the_header() {
        let mut long = message(20, 5, b"1234");
        long[0] = 200;
        assert_eq!(messages(&long).count(), 0);
        let mut short = message(20, 5, b"1234");
        short[0] = 15;
        assert_eq!(messages(&short).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic_or_hang(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).count() <= bytes.len() / HEADER);
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4);
        }
    }
}
