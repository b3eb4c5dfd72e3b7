//! Sockets that one process hands to another: bytes count for the process that holds the connection when they move.

use std::io::{self, BufRead, IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use bwmon::kernel::process_events::ProcessEvents;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{self, ControlMessage, ControlMessageOwned, MsgFlags};
use nix::unistd::close;
use tempfile::TempDir;

use crate::common::program::Running;
use crate::support::harness::{Lack, Outcome, needs_bpf, needs_command};
use crate::support::netns::host_and_remote;
use crate::support::role::{role_command, start_role, tell, told};
use crate::support::scene::{ANSWER, REQUEST, Scene, ask, less, serve, serve_once};

/// The number of short connections to a running process.
const SHORT: usize = 40;
/// The number of short connections for each of which a process is started. One of them is less than the error of one in a
/// hundred that the test allows, should the machine be stopped for a moment.
const STARTED: usize = 200;

/// Plays the roles of this module, and says whether `role` is one.
pub fn play(role: &[&str]) -> bool {
    let listen = || {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        tell(listener.local_addr().unwrap().port());
        listener
    };
    match *role {
        ["prefork", children] => {
            let listener = TcpListener::bind("0.0.0.0:0").unwrap();
            let start = |_| given(&listener, role_command("prefork_child", "accept")).spawn().unwrap();
            let children: Vec<_> = (0..children.parse().unwrap()).map(start).collect();
            tell(listener.local_addr().unwrap().port());
            children.into_iter().for_each(|mut child| drop(child.wait()));
        }
        ["accept"] => {
            set_pdeathsig(Signal::SIGKILL).unwrap();
            let listener = TcpListener::from(first_socket());
            listener.incoming().for_each(|stream| serve(&mut stream.unwrap()));
        }
        ["inetd"] => listen().incoming().for_each(|stream| {
            let mut child = given(stream.unwrap(), role_command("inetd_child", "serve")).spawn().unwrap();
            std::thread::spawn(move || child.wait());
        }),
        ["serve"] => serve(&mut TcpStream::from(first_socket())),
        ["exec"] => {
            let (mut stream, _) = listen().accept().unwrap();
            serve_once(&mut stream);
            wait_for_line();
            panic!("{}", given(stream, role_command("exec_new", "tell and serve")).exec());
        }
        ["tell", "and", "serve"] => {
            tell(0);
            serve(&mut TcpStream::from(first_socket()));
        }
        ["hand_on"] => {
            let (mut stream, _) = listen().accept().unwrap();
            serve_once(&mut stream);
            hand_on(stream.as_raw_fd());
            drop(stream);
            tell(0);
            wait_for_line();
        }
        ["receive", path] => {
            let listener = UnixListener::bind(path).unwrap();
            tell(0);
            let (sender, _) = listener.accept().unwrap();
            let mut stream = Received(receive(&sender));
            tell(0);
            serve_once(&mut stream);
            hand_on(stream.0);
            close(stream.0).unwrap();
            tell(0);
            wait_for_line();
        }
        _ => return false,
    }
    true
}

/// A command whose process starts with a socket in the place of its standard input.
fn given(socket: impl AsFd, mut command: Command) -> Command {
    command.stdin(Stdio::from(socket.as_fd().try_clone_to_owned().unwrap()));
    command
}

/// The socket with which this process started.
pub fn first_socket() -> OwnedFd {
    io::stdin().as_fd().try_clone_to_owned().unwrap()
}

/// Waits for a line of the test.
fn wait_for_line() -> String {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).unwrap();
    line.trim().into()
}

/// Waits for a path from the test, and passes a descriptor to the process that listens there.
fn hand_on(fd: RawFd) {
    let receiver = UnixStream::connect(wait_for_line()).unwrap();
    let message = [ControlMessage::ScmRights(&[fd])];
    socket::sendmsg::<()>(receiver.as_raw_fd(), &[IoSlice::new(b"x")], &message, MsgFlags::empty(), None).unwrap();
}

pub fn receive(sender: &UnixStream) -> RawFd {
    let mut space = nix::cmsg_space!(RawFd);
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let message =
        socket::recvmsg::<()>(sender.as_raw_fd(), &mut bytes, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    match message.cmsgs().unwrap().next() {
        Some(ControlMessageOwned::ScmRights(fds)) => fds[0],
        other => panic!("{other:?}"),
    }
}

/// A socket that came in a message of another.
struct Received(RawFd);

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(socket::recv(self.0, buffer, MsgFlags::empty())?)
    }
}

impl Write for Received {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(socket::send(self.0, bytes, MsgFlags::empty())?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends a line to a process that waits for one.
fn say(role: &mut Running, line: &str) {
    writeln!(role.child.stdin.as_mut().unwrap(), "{line}").unwrap();
}

pub fn the_child_of_a_prefork_server_that_accepts_a_connection_is_credited() {
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let (_server, port) = scene.server("long", "prefork_parent", "prefork 2");
    let mut streams = [scene.connect(port), scene.connect(port)];
    for _ in 0..3 {
        streams.iter_mut().for_each(ask);
        scene.wait_for_all("long", "prefork_child");
    }
    drop(streams);
    for _ in 0..SHORT {
        ask(&mut scene.connect(port));
    }
    scene.wait_for_all("long", "prefork_child");
    assert_eq!(scene.monitor.figures.get("prefork_parent"), None);
}

pub fn a_child_that_is_started_with_an_accepted_connection_is_credited() {
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let (_server, port) = scene.server("long", "inetd_parent", "inetd");
    let mut stream = scene.connect(port);
    for _ in 0..3 {
        ask(&mut stream);
        scene.wait_for_shares("long", |all| vec![("inetd_child", all), ("inetd_parent", (0, 0))]);
    }
}

pub fn children_that_end_at_once_are_credited_with_the_connections_they_were_given() -> Outcome {
    needs_bpf()?;
    ProcessEvents::of_programs().map_err(|error| Lack(format!("the kernel's process events ({error:#})")))?;
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let (_server, port) = scene.server("long", "inetd_parent", "inetd");
    for _ in 0..STARTED {
        ask(&mut scene.connect(port));
    }
    scene.wait_for_shares("long", |all| vec![("inetd_child", all), ("inetd_parent", (0, 0))]);
    Ok(())
}

pub fn a_connection_passed_to_another_process_counts_for_that_process_from_then_on() {
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let sockets = TempDir::new().unwrap();
    let path = |name: &str| sockets.path().join(name).to_str().unwrap().to_owned();
    let receiver = |name: &str| {
        let receiver = start_role(host, name, &format!("receive {}", path(name)));
        told(&receiver);
        receiver
    };
    let mut older = receiver("older");
    let (mut sender, port) = scene.server("passed", "sender", "hand_on");
    let younger = receiver("younger");

    let mut stream = scene.connect(port);
    ask(&mut stream);
    scene.wait_for_all("passed", "sender");
    let senders = scene.bytes("passed");
    say(&mut sender, &path("older"));
    told(&sender);
    told(&older);
    ask(&mut stream);
    scene.wait_for_shares("passed", |all| vec![("sender", senders), ("older", less(all, senders))]);
    let until_then = scene.bytes("passed");
    let olders = less(until_then, senders);
    say(&mut older, &path("younger"));
    told(&older);
    told(&younger);
    ask(&mut stream);
    scene.wait_for_shares("passed", |all| {
        vec![("sender", senders), ("older", olders), ("younger", less(all, until_then))]
    });
}

pub fn bytes_after_an_exec_count_for_the_new_command_line() {
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let (mut server, port) = scene.server("exec", "exec_old", "exec");
    let mut stream = scene.connect(port);
    ask(&mut stream);
    scene.wait_for_all("exec", "exec_old");
    let before = scene.bytes("exec");
    say(&mut server, "exec");
    told(&server);
    ask(&mut stream);
    scene.wait_for_shares("exec", |all| vec![("exec_old", before), ("exec_new", less(all, before))]);
}

pub fn bytes_after_a_process_has_rewritten_its_title_count_for_the_new_title() -> Outcome {
    needs_command("perl", &["-e1"])?;
    let (host, remote) = &host_and_remote();
    let mut scene = Scene::new(host, remote, &[]);
    let program = format!(
        "use Socket; $| = 1; socket(my $listener, PF_INET, SOCK_STREAM, 0); listen($listener, 1); \
         print((sockaddr_in(getsockname($listener)))[0], \"\\n\"); accept(my $stream, $listener); \
         sub serve {{ read($stream, my $request, {REQUEST}); syswrite($stream, 'x' x {ANSWER}); }} \
         serve(); <STDIN>; $0 = 'title_new'; print \"0\\n\"; serve(); <STDIN>;"
    );
    let mut command = Command::new("perl");
    command.arg0("title_old").args(["-e", &program]).stdin(Stdio::piped());
    let mut server = Running::start(&mut command);
    let port = told(&server);
    scene.truth.count("title", "tcp", port);
    let mut stream = scene.connect(port);
    ask(&mut stream);
    scene.wait_for_all("title", "title_old");
    let before = scene.bytes("title");
    say(&mut server, "rewrite");
    told(&server);
    ask(&mut stream);
    scene.wait_for_shares("title", |all| vec![("title_old", before), ("title_new", less(all, before))]);
    Ok(())
}
