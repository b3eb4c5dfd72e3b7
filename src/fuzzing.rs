//! Entry points for input from outside, each for any bytes: the targets in `fuzz/` and the property tests below call the same.
//! Compiled for them alone.

use std::time::{Duration, Instant};

use crate::config::{Diagnostics, applications, monitors, notifications};
use crate::kernel::conntrack::{ctnetlink, text};
use crate::kernel::flow::Protocol;
use crate::kernel::{netlink, process, process_events, sock_diag};
use crate::pipe::simulate;
use crate::python2::pattern::Pattern;
use crate::python2::{ini, int, shlex};
use crate::web::request;
use crate::workload::cgroup::Cgroup;
use crate::workload::users;

/// Lines of /proc/net/nf_conntrack, its older form, and conntrack(8).
pub fn conntrack_text(bytes: &[u8]) {
    for line in bytes.split(|&byte| byte == b'\n') {
        if let text::Line::Flow(flow) = text::parse(line) {
            // What is on a line is on it whatever surrounds it.
            let padded = [line, b"  "].concat();
            assert!(matches!(text::parse(&padded), text::Line::Flow(again) if again.original == flow.original));
        }
    }
}

/// A datagram of conntrack's netlink socket.
pub fn conntrack_netlink(bytes: &[u8]) {
    let mut rest = bytes.len();
    for message in netlink::messages(bytes) {
        assert!(message.payload.len() < rest);
        rest -= message.payload.len();
        let _ = ctnetlink::parse(message.payload);
    }
    let _ = ctnetlink::parse(bytes);
}

/// A datagram of sock_diag(7), and of the process connector.
pub fn sock_diag(bytes: &[u8]) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let _ = sock_diag::parse(protocol, bytes);
    }
    for message in netlink::messages(bytes) {
        let _ = sock_diag::parse(Protocol::Tcp, message.payload);
        let _ = process_events::parse(&message);
    }
}

/// Files of /proc and /etc/passwd.
pub fn proc_text(bytes: &[u8]) {
    let _ = process::Stat::parse(bytes);
    let _ = process::parse_socket_link(bytes);
    let _ = users::parse(bytes);
}

/// /proc/PID/cgroup.
pub fn cgroup(bytes: &[u8]) {
    for root in [&b""[..], b"/docker/0123"] {
        let Some(cgroup) = Cgroup::parse(bytes, root) else { continue };
        let workload = cgroup.workload();
        let _ = (workload.unit_label(), workload.container_label(None));
    }
}

/// The three configuration files. The database of users is not asked: it is no input.
pub fn ini(bytes: &[u8]) {
    let mut diagnostics = Diagnostics::default();
    let sections = ini::parse("f", bytes, &mut diagnostics);
    for section in &sections {
        for option in &section.options {
            let value = option.value.as_deref().unwrap_or_default();
            let _ = (int::int(value).is_ok(), shlex::split(value.as_bytes()).is_ok());
        }
    }
    let _ = monitors("f", bytes, &mut diagnostics);
    let _ = applications("f", bytes, &mut diagnostics);
    let names_users = bytes.windows(17).any(|key| key.eq_ignore_ascii_case(b"notification_user"));
    if !names_users {
        let _ = notifications("f", bytes, &mut diagnostics);
    }
}

/// A pattern, and a subject behind its first NUL. However it is built, it is done within seconds.
pub fn pattern(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let (pattern, subject) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let begun = Instant::now();
    if let Ok(pattern) = Pattern::new(pattern) {
        let _ = pattern.is_match(subject);
        let _ = pattern.matches_command_line(subject);
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// A request for a page.
pub fn http(bytes: &[u8]) {
    for is_loopback in [false, true] {
        let whole = request::parse(bytes, is_loopback);
        // What is understood does not change with what comes behind it, and before that there is nothing or more to come.
        if let Ok(Some(request)) = &whole {
            let more = [bytes, b"GET"].concat();
            assert_eq!(request::parse(&more, is_loopback).ok().flatten().as_ref(), Some(request));
        }
    }
}

/// What the two ends of a connection through a pipe do, and what the kernel reports when.
pub fn pipe(bytes: &[u8]) {
    simulate(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    /// An entry point, and what it is given.
    type Samples = (fn(&[u8]), &'static [&'static [u8]]);

    /// Samples of real input, each of which the tests cut, repeat and change.
    const SAMPLES: [Samples; 8] = [
        (conntrack_text, &[include_bytes!("../tests/fixtures/nf_conntrack-6.18.txt"), include_bytes!("../tests/fixtures/conntrack-1.4.7-id.txt")]),
        (conntrack_netlink, &[include_bytes!("../tests/fixtures/ctnetlink-6.18.bin")]),
        (sock_diag, &[include_bytes!("../tests/fixtures/ctnetlink-6.18.bin"), &[2; 120]]),
        (proc_text, &[b"7 (a) b\xff (c)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 2400256\n", b"socket:[81234]", b"a:x:5:5::/:\n"]),
        (cgroup, &[b"0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope\n", b"12:pids:/docker/0123/0123\n"]),
        (ini, &[include_bytes!("../monitors.sample.cfg"), include_bytes!("../group.sample.cfg")]),
        (pattern, &[b"(?:a|b)*c{2,5}(?=x)\\1[^a-z]\0aaabbbccx", b"^(a+)+$\0aaaaaaaaaaaaaaaa!"]),
        (http, &[b"GET /data.json?after=7&moved&history=600 HTTP/1.1\r\nHost: localhost:8000\r\nAccept: text/html\r\n\r\n"]),
    ];

    /// One change of a text: bytes of it, or others, in place of some.
    fn changed(mut text: Vec<u8>, changes: &[(Index, Index, Vec<u8>)]) -> Vec<u8> {
        for (from, to, new) in changes {
            if text.is_empty() {
                break;
            }
            let (from, to) = (from.index(text.len()), to.index(text.len()));
            let new = if new.is_empty() { text[from.min(to)..from.max(to)].to_vec() } else { new.clone() };
            text.splice(from..(from + new.len()).min(text.len()), new);
        }
        text.truncate(20_000);
        text
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_change_of_real_input_makes_it_panic(
            (target, samples) in select(&SAMPLES[..]),
            which: Index,
            changes in vec((any::<Index>(), any::<Index>(), vec(any::<u8>(), 0..4)), 0..12),
        ) {
            target(&changed(samples[which.index(samples.len())].to_vec(), &changes));
        }

        #[test]
        fn no_bytes_make_it_panic((target, _) in select(&SAMPLES[..]), bytes in vec(any::<u8>(), 0..400)) {
            target(&bytes);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn a_connection_is_whole_or_reset_whatever_its_ends_do(steps in vec(any::<u8>(), 1..100)) {
            pipe(&steps);
        }
    }
}
