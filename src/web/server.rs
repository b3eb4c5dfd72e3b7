//! The server: one thread, which waits in poll(2) for ticks and for clients, and for none of them alone.
//!
//! A client may be slow, silent or hostile. It has [`REQUEST_TIME`] to ask, and [`RESPONSE_TIME`] to take the response, and where
//! there are more clients than [`MOST_CLIENTS`], a new one takes the place of the one that has asked for nothing for the longest.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::Message;
use super::request::{MOST_BYTES, Request, Status, parse};
use super::site::{Response, Site};

/// The most clients at a time.
const MOST_CLIENTS: usize = 64;
/// The most clients that are accepted before those that are here get their turn.
const MOST_AT_ONCE: usize = 16;

/// How long a client may take to send its request.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long a client may take to receive the response.
const RESPONSE_TIME: Duration = Duration::from_secs(20);
/// How long a client waits for a tick, beyond the time from one to the next.
const TICK_TIME: Duration = Duration::from_secs(30);
/// How long the rest of what a client sends is read after the response: closing a socket with unread bytes resets the
/// connection (RFC 9293, section 3.6.1), and the response may be lost.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// The pause after accept(2) has failed, for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What every response has. The page asks nobody else for anything, and nobody else may frame it, read it or keep it.
const HEADERS: &str = "Cache-Control: no-store\r\n\
    Content-Security-Policy: default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
    X-Content-Type-Options: nosniff\r\n\
    Cross-Origin-Resource-Policy: same-origin\r\n\
    Referrer-Policy: no-referrer\r\n\
    Connection: close\r\n";

struct Client {
    stream: TcpStream,
    /// When it came, or its state last changed.
    since: Instant,
    state: State,
}

enum State {
    /// It sends its request.
    Asking(Vec<u8>),
    /// It waits for a tick.
    Waiting(Request),
    /// It receives the response.
    Receiving { head: Vec<u8>, body: Arc<[u8]>, sent: usize },
    /// It has the response.
    Draining,
    /// It is gone.
    Gone,
}

impl Client {
    fn turn(&mut self, state: State, now: Instant) {
        (self.state, self.since) = (state, now);
    }

    fn respond(&mut self, response: Response, is_head: bool, now: Instant) {
        let Response { status, content_type, body } = response;
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{HEADERS}",
            status as u16,
            status.reason(),
            body.len()
        );
        if status == Status::MethodNotAllowed {
            head.push_str("Allow: GET, HEAD\r\n");
        }
        head.push_str("\r\n");
        let body = if is_head { Arc::from(&b""[..]) } else { body };
        self.turn(State::Receiving { head: head.into_bytes(), body, sent: 0 }, now);
        self.send(now);
    }

    /// Reads and writes what is possible at once.
    fn step(&mut self, site: &mut Site, is_loopback: bool, now: Instant) {
        match &mut self.state {
            State::Asking(bytes) => {
                let mut buffer = [0; MOST_BYTES];
                match self.stream.read(&mut buffer[..MOST_BYTES - bytes.len()]) {
                    Ok(0) => self.state = State::Gone,
                    Ok(length) => {
                        bytes.extend(&buffer[..length]);
                        match parse(bytes, is_loopback) {
                            Ok(None) => {}
                            Ok(Some(request)) => self.ask(request, site, now),
                            Err(status) => self.respond(Response::of(status), false, now),
                        }
                    }
                    Err(error) => self.failed(&error),
                }
            }
            // What comes after the request has no meaning; its end has.
            State::Waiting(_) | State::Draining => match self.stream.read(&mut [0; MOST_BYTES]) {
                Ok(0) => self.state = State::Gone,
                Ok(_) => {}
                Err(error) => self.failed(&error),
            },
            State::Receiving { .. } => self.send(now),
            State::Gone => {}
        }
    }

    fn ask(&mut self, request: Request, site: &mut Site, now: Instant) {
        match site.answer(&request, now) {
            Some(response) => self.respond(response, request.is_head, now),
            None => self.turn(State::Waiting(request), now),
        }
    }

    /// Answers a client that has waited for a tick.
    fn ask_again(&mut self, site: &mut Site, now: Instant) {
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Waiting(request) => match site.answer(&request, now) {
                Some(response) => self.respond(response, request.is_head, now),
                None => self.state = State::Waiting(request),
            },
            state => self.state = state,
        }
    }

    fn send(&mut self, now: Instant) {
        let State::Receiving { head, body, sent } = &mut self.state else { return };
        loop {
            let rest = if *sent < head.len() { &head[*sent..] } else { &body[*sent - head.len()..] };
            if rest.is_empty() {
                break;
            }
            match self.stream.write(rest) {
                Ok(length) => *sent += length,
                Err(error) => return self.failed(&error),
            }
        }
        let state = if self.stream.shutdown(Shutdown::Write).is_ok() { State::Draining } else { State::Gone };
        self.turn(state, now);
    }

    fn failed(&mut self, error: &std::io::Error) {
        if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
            self.state = State::Gone;
        }
    }

    /// When it has to be done with what it does.
    fn deadline(&self, tick: Duration) -> Instant {
        self.since
            + match self.state {
                State::Asking(_) => REQUEST_TIME,
                State::Waiting(_) => TICK_TIME + tick,
                State::Receiving { .. } => RESPONSE_TIME,
                State::Draining | State::Gone => DRAIN_TIME,
            }
    }

    fn expire(&mut self, now: Instant) {
        match self.state {
            State::Asking(_) => self.respond(Response::of(Status::RequestTimeout), false, now),
            State::Waiting(_) => self.respond(Response::of(Status::Unavailable), false, now),
            _ => self.state = State::Gone,
        }
    }

    /// How little would be lost without it: the lowest goes first.
    fn rank(&self) -> u8 {
        match self.state {
            State::Gone | State::Draining => 0,
            State::Asking(_) => 1,
            State::Waiting(_) => 2,
            State::Receiving { .. } => 3,
        }
    }

    fn waits_for(&self) -> PollFlags {
        if matches!(self.state, State::Receiving { .. }) { PollFlags::POLLOUT } else { PollFlags::POLLIN }
    }
}

/// Serves `site` until the sender of the messages is gone.
pub fn serve(listener: &TcpListener, messages: &Receiver<Message>, wakeup: &EventFd, mut site: Site) {
    // A local address that cannot be told is no reason to trust names.
    let is_loopback = listener.local_addr().map_or(true, |address| address.ip().is_loopback());
    let mut clients: Vec<Client> = Vec::new();
    let mut accept_from = Instant::now();
    loop {
        let now = Instant::now();
        let deadlines = clients.iter().map(|client| client.deadline(site.interval()));
        let next = deadlines.chain((accept_from > now).then_some(accept_from)).min();
        let listens = if accept_from > now { PollFlags::empty() } else { PollFlags::POLLIN };
        let mut waiting = vec![PollFd::new(wakeup.as_fd(), PollFlags::POLLIN), PollFd::new(listener.as_fd(), listens)];
        waiting.extend(clients.iter().map(|client| PollFd::new(client.stream.as_fd(), client.waits_for())));
        if poll(&mut waiting, timeout(next, now)).is_err() {
            // Interrupted: there is nothing to do.
            continue;
        }
        let ready: Vec<bool> = waiting.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        drop(waiting);

        let now = Instant::now();
        for (client, _) in clients.iter_mut().zip(&ready[2..]).filter(|(_, ready)| **ready) {
            client.step(&mut site, is_loopback, now);
        }
        if ready[0] {
            let _ = wakeup.read();
            loop {
                match messages.try_recv() {
                    Ok(message) => site.take(message),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            clients.iter_mut().for_each(|client| client.ask_again(&mut site, now));
        }
        if ready[1] && accept(listener, &mut clients, now).is_err() {
            accept_from = now + ACCEPT_PAUSE;
        }
        let interval = site.interval();
        clients.iter_mut().filter(|client| client.deadline(interval) <= now).for_each(|client| client.expire(now));
        clients.retain(|client| !matches!(client.state, State::Gone));
    }
}

fn accept(listener: &TcpListener, clients: &mut Vec<Client>, now: Instant) -> std::io::Result<()> {
    for _ in 0..MOST_AT_ONCE {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // The client has gone before it was accepted.
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        if clients.len() >= MOST_CLIENTS {
            let first = clients.iter().enumerate().min_by_key(|(_, client)| (client.rank(), client.since));
            if let Some((at, _)) = first {
                clients.swap_remove(at);
            }
        }
        clients.push(Client { stream, since: now, state: State::Asking(Vec::new()) });
    }
    Ok(())
}

fn timeout(until: Option<Instant>, now: Instant) -> PollTimeout {
    let Some(until) = until else { return PollTimeout::NONE };
    // Not before it is time.
    let millis = until.saturating_duration_since(now).as_millis() + 1;
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}
