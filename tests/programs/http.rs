//! The server of --http: what it answers, whom it refuses, and that nobody holds it up.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;

use serde_json::Value;

use crate::common::http::{Response, connect, exchange, get, response, served_at};
use crate::common::program::{Running, wait_for};
use crate::common::runmonitor::{Traffic, runmonitor};

fn start() -> (Running, SocketAddr) {
    let program = Running::start(&mut runmonitor(&["--http=0"]));
    let server = served_at(&program);
    (program, server)
}

fn json(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{response:?}");
    serde_json::from_str(&response.body).unwrap()
}

/// The number of ticks so far: waits for one after `after`.
fn ticks(server: SocketAddr, after: u64) -> u64 {
    json(&get(server, &format!("/data.json?after={after}")))["program"]["ticks"].as_u64().unwrap()
}

#[test]
fn it_serves_the_page_the_figures_and_the_metrics() {
    let traffic = Traffic::new();
    let (_program, server) = start();
    for (target, content_type, part) in [
        ("/", "text/html; charset=utf-8", "<!doctype html>"),
        ("/page.css", "text/css; charset=utf-8", ":root"),
        ("/page.js", "text/javascript; charset=utf-8", "use strict"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", "# TYPE bwmon_receive_bytes_total counter"),
    ] {
        let Response { status, headers, body } = get(server, target);
        assert_eq!(status, 200);
        assert!(headers.contains(&format!("\r\nContent-Type: {content_type}\r\n")), "{target}: {headers}");
        assert!(headers.contains("\r\nX-Content-Type-Options: nosniff\r\n") && headers.contains("default-src 'none';"));
        assert!(headers.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
        assert!(body.contains(part), "{target}: {body}");
    }
    let data = json(&get(server, "/data.json?history=600"));
    let of_traffic = |records: &Value| {
        let is_ours = |record: &&Value| record["command_line"] == format!("{} ", traffic.name);
        records.as_array().unwrap().iter().find(is_ours).cloned()
    };
    let record = of_traffic(&data["records"]).unwrap();
    assert_eq!(record["in_bytes_total"], 5000);
    assert_eq!(record["pids"].as_array().unwrap().len(), 1);
    assert_eq!(data["tick"]["kind"], "tick");
    let later = ticks(server, data["program"]["ticks"].as_u64().unwrap());
    assert_eq!(later, data["program"]["ticks"].as_u64().unwrap() + 1);
}

#[test]
fn it_refuses_what_it_does_not_serve_and_whom_it_is_not() {
    let (_program, server) = start();
    let status = |request: &str| exchange(server, request.as_bytes()).status;
    assert_eq!(status("GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n"), 404);
    assert_eq!(status("GET /history.json?from=0&to=60 HTTP/1.1\r\nHost: localhost\r\n\r\n"), 404);
    assert_eq!(status("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"), 421);
    assert_eq!(status("GET /data.json HTTP/1.1\r\nHost: localhost.evil.example:8000\r\n\r\n"), 421);
    assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 400);
    assert_eq!(status("\u{16}\u{3}\u{1}\r\n\r\n"), 400);
    let post = exchange(server, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nabcd");
    assert!(post.status == 405 && post.headers.contains("\r\nAllow: GET, HEAD"));
    let head = exchange(server, b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.headers, get(server, "/").headers);
}

/// The most memory that the program has had, in KiB.
fn most_memory(program: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim_end_matches(" kB").trim().parse().unwrap()
}

#[test]
fn neither_slow_nor_greedy_nor_senseless_clients_hold_up_a_tick_or_the_page_or_take_much_memory() {
    let _traffic = Traffic::new();
    let (program, server) = start();
    let before = ticks(server, 0);
    let memory = most_memory(&program);
    // As many as send a request byte by byte, and as many as do not read the response.
    let mut slow: Vec<_> = (0..200).map(|_| connect(server)).collect();
    let mut greedy: Vec<_> = (0..200).map(|_| connect(server)).collect();
    for stream in &mut greedy {
        // The server may have dropped it in favour of a later one.
        let _ = stream.write_all(b"GET /data.json?history=600 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    }
    for byte in b"GET / HTTP/1.1\r\nHost: localhost\r\nX: y" {
        for stream in &mut slow {
            let _ = stream.write_all(&[*byte]);
        }
    }
    for garbage in [&[0; 5000][..], b"\r\n\r\n\r\n", b"GET", &[0xff; 9000]] {
        let mut stream = connect(server);
        let _ = stream.write_all(garbage);
        slow.push(stream);
    }
    let mut endless = connect(server);
    endless.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ").unwrap();
    let rest = vec![b'x'; 10 << 20];
    // It may be closed before all of it is sent.
    if endless.write_all(&rest).is_ok() {
        assert_eq!(response(endless).status, 431);
    }
    assert!(get(server, "/").body.contains("<!doctype html>"));
    assert_eq!(get(server, "/healthz").status, 200);
    let after = ticks(server, before);
    assert!(ticks(server, after) > before + 1);
    program.line();
    // The 64 that are served have 8 KiB each, and share their responses; the rest is for the ticks of a busy host meanwhile.
    let more = most_memory(&program) - memory;
    assert!(more < 32 << 10, "{more} KiB more");
    drop((slow, greedy));
}

#[test]
fn names_that_others_chose_stay_text() {
    let traffic = Traffic::named("</script><img src=x onerror=alert(1)>\"\\\n\u{202e}\u{7f}");
    let (_program, server) = start();
    let data = get(server, "/data.json");
    let records = json(&data)["records"].clone();
    let is_ours = |record: &Value| record["command_line"] == format!("{} ", traffic.name);
    assert!(records.as_array().unwrap().iter().any(is_ours), "{records}");
    assert!(!data.body.chars().any(|c| c.is_control() || c == '\u{202e}'), "{}", data.body);
    assert!(data.headers.contains("\r\nContent-Type: application/json\r\n"));
}

#[test]
fn a_port_in_use_is_an_error_that_names_the_argument_and_the_address() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let program = runmonitor(&[&format!("--http={address}")]).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(program.status.code(), Some(1));
    let said = String::from_utf8(program.stderr).unwrap();
    assert!(said.contains(&format!("--http: cannot listen on {address}: Address already in use")), "{said}");
    let wrong = runmonitor(&["--http=everywhere"]).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("such as 8000, 0.0.0.0:8000 or [::1]:8000"));
}

/// The record of this traffic among those that the server has.
fn served_record(server: SocketAddr, traffic: &Traffic) -> Value {
    let data = json(&get(server, "/data.json"));
    let is_ours = |record: &&Value| record["command_line"] == format!("{} ", traffic.name);
    data["records"].as_array().unwrap().iter().find(is_ours).cloned().unwrap()
}

#[test]
fn lines_are_the_same_while_somebody_looks_at_the_page() {
    let traffic = Traffic::new();
    let program = Running::start(&mut runmonitor(&["--http=0", &format!("--include=^{}", traffic.name)]));
    let server = served_at(&program);
    assert_eq!(served_record(server, &traffic)["remotes"].as_array().unwrap().len(), 1);
    // The page was looked at from the second tick on, at the latest; each has one line.
    for _ in 0..4 {
        assert_eq!(program.line(), format!("{:>10} / {:>10} -- {} ", 5000, 0, traffic.name));
    }
}

#[test]
fn json_lines_have_what_they_are_asked_for_and_the_server_has_all() {
    let traffic = Traffic::new();
    let include = format!("--include=^{}", traffic.name);
    for (arguments, of_lines) in [(&["--json"][..], 0), (&["--json", "--remotes=1", "--unowned"], 1)] {
        let program = Running::start(&mut runmonitor(&[&["--http=0", &include], arguments].concat()));
        let server = served_at(&program);
        let served = served_record(server, &traffic);
        assert_eq!(served["remotes"].as_array().unwrap().len(), 1);
        let record = wait_for("the record", || {
            let record: Value = serde_json::from_str(&program.line()).unwrap();
            (record["kind"] == "process").then_some(record)
        });
        assert_eq!(record["pids"], served["pids"]);
        assert_eq!(record["remotes"].as_array().map_or(0, Vec::len), of_lines);
    }
}
