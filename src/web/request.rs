//! HTTP requests (RFC 9112), as far as this server answers any: the line `GET /data.json?after=7 HTTP/1.1` and three headers.

use std::net::IpAddr;

use super::past::Range;
use crate::calendar::LAST;

/// The most bytes of a request up to the empty line that ends its headers.
pub const MOST_BYTES: usize = 8 << 10;
const MOST_HEADERS: usize = 64;

/// A request for one of the pages.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Whether only the headers of the response are wanted.
    pub is_head: bool,
    /// What is asked for, without the query.
    pub path: String,
    /// The tick that the client has: it waits for a later one.
    pub after: Option<u64>,
    /// Whether the rows that have not moved since that tick may be missing.
    pub moved_only: bool,
    /// Whether the history of the last minutes is wanted, too.
    pub with_history: bool,
    /// The first moment of the range whose history is wanted, and the one after its last, in full minutes, in seconds since 1970.
    pub range: Option<Range>,
    /// Whether the client prefers OpenMetrics to the older text format of Prometheus.
    pub takes_openmetrics: bool,
}

/// The status of a response (RFC 9110, section 15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The page.
    Ok = 200,
    /// This is no HTTP, or no Host is named.
    BadRequest = 400,
    /// There is no such page.
    NotFound = 404,
    /// Something else than GET and HEAD.
    MethodNotAllowed = 405,
    /// The request did not come in time.
    RequestTimeout = 408,
    /// The Host is the name of another: what a browser sends when its page has made a name of its own stand for this address.
    Misdirected = 421,
    /// The headers are too long.
    HeadersTooLarge = 431,
    /// There are no figures yet, or no new ones any more.
    Unavailable = 503,
}

impl Status {
    /// The words after the number.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::BadRequest => "Bad Request",
            Self::NotFound => "Not Found",
            Self::MethodNotAllowed => "Method Not Allowed",
            Self::RequestTimeout => "Request Timeout",
            Self::Misdirected => "Misdirected Request",
            Self::HeadersTooLarge => "Request Header Fields Too Large",
            Self::Unavailable => "Service Unavailable",
        }
    }
}

/// Parses what a client has sent so far: `None` as long as more is to come. `is_loopback` tells whether the server listens on an
/// address that only this host reaches.
///
/// # Errors
/// The status with which to refuse it.
pub fn parse(bytes: &[u8], is_loopback: bool) -> Result<Option<Request>, Status> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if bytes.len() < MOST_BYTES => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(Status::HeadersTooLarge),
        Err(_) => return Err(Status::BadRequest),
    }
    let is_head = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(Status::MethodNotAllowed),
    };
    let target = request.path.filter(|target| target.starts_with('/')).ok_or(Status::BadRequest)?;
    let values = |name: &'static str| {
        let of_name = request.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        of_name.map(|header| String::from_utf8_lossy(header.value))
    };
    let hosts: Vec<_> = values("host").collect();
    match &hosts[..] {
        [host] if is_ours(host, is_loopback) => {}
        [_] => return Err(Status::Misdirected),
        _ => return Err(Status::BadRequest),
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    Ok(Some(Request {
        is_head,
        path: path.to_owned(),
        after: value("after").and_then(|tick| tick.parse().ok()),
        moved_only: has("moved"),
        with_history: has("history"),
        range: value("from").zip(value("to")).and_then(|(from, to)| range(from, to)),
        takes_openmetrics: values("accept").any(|accepted| accepted.contains("application/openmetrics-text")),
    }))
}

/// The range of two times, if they are some of this calendar. Full minutes, so that clients which look at the same have one answer.
fn range(from: &str, to: &str) -> Option<Range> {
    let minutes =
        |seconds: &str| seconds.parse().ok().filter(|seconds| (0..=LAST).contains(seconds)).map(|at: i64| at / 60);
    let (from, to) = (minutes(from)? * 60, (minutes(to)? + 1) * 60);
    (from < to).then_some((from, to))
}

/// Whether a Host (RFC 9110, section 7.2) is a name of this server. A page of somebody else's, whose name resolves to this
/// address after the browser has loaded it (DNS rebinding), still sends that name: an address or `localhost` is none.
fn is_ours(host: &str, is_loopback: bool) -> bool {
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    !is_loopback
        || address.parse::<IpAddr>().is_ok()
        || ["localhost", "localhost."].iter().any(|name| host.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(lines: &str) -> Result<Option<Request>, Status> {
        parse(lines.replace('\n', "\r\n").as_bytes(), true)
    }

    #[test]
    fn a_request_is_read_when_its_headers_have_come() {
        let text = "GET /data.json?after=7&moved&history=600 HTTP/1.1\nHost: localhost:8000\nAccept: text/html\n\n";
        for end in 0..text.len() {
            assert_eq!(parsed(&text[..end]), Ok(None));
        }
        let request = parsed(text).unwrap().unwrap();
        assert_eq!((request.path.as_str(), request.after), ("/data.json", Some(7)));
        assert!(request.moved_only && request.with_history);
        assert!(!request.is_head && !request.takes_openmetrics);
        let range = |query: &str| {
            parsed(&format!("GET /history.json?{query} HTTP/1.1\nHost: [::1]\n\n")).unwrap().unwrap().range
        };
        assert_eq!(range("from=125&to=185"), Some((120, 240)));
        for none in ["from=1", "from=7200&to=60", "from=-1&to=60", "from=a&to=60", "from=0&to=9999999999999999999"] {
            assert_eq!(range(none), None, "{none}");
        }
        let request = parsed("HEAD / HTTP/1.1\nhost: [::1]\naccept: application/openmetrics-text;version=1.0.0\n\n");
        assert!(request.unwrap().is_some_and(|request| request.is_head && request.takes_openmetrics));
    }

    #[test]
    fn on_loopback_only_addresses_and_localhost_are_names_of_this_server() {
        let status = |host: &str| parsed(&format!("GET / HTTP/1.1\nHost: {host}\n\n")).err();
        for ours in ["localhost", "LocalHost:8000", "127.0.0.1:8000", "[::1]:8000", "10.1.2.3", "localhost.:1"] {
            assert_eq!(status(ours), None, "{ours}");
        }
        let others =
            ["evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "evil:80:80", "", "[evil]"];
        for other in others {
            assert_eq!(status(other), Some(Status::Misdirected), "{other}");
        }
        assert!(is_ours("atlas.example.net:8000", false));
    }

    #[test]
    fn what_is_no_request_for_a_page_is_refused_with_its_status() {
        let host = "Host: localhost\n";
        for (lines, status) in [
            (format!("POST / HTTP/1.1\n{host}\n"), Status::MethodNotAllowed),
            (format!("GET http://localhost/ HTTP/1.1\n{host}\n"), Status::BadRequest),
            ("GET / HTTP/1.1\n\n".into(), Status::BadRequest),
            (format!("GET / HTTP/1.1\n{host}{host}\n"), Status::BadRequest),
            (format!("GET / HTTP/9.9\n{host}\n"), Status::BadRequest),
            ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\n".into(), Status::BadRequest),
            (format!("GET / HTTP/1.1\n{host}{}", "a: b\n".repeat(65)), Status::HeadersTooLarge),
            (format!("GET / HTTP/1.1\n{host}a: {}", "b".repeat(MOST_BYTES)), Status::HeadersTooLarge),
        ] {
            assert_eq!(parsed(&lines), Err(status), "{lines:.60}");
        }
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), tail in "[ -~\r\n]{0,200}") {
            let _ = parse(&bytes, true);
            let _ = parse(&[b"GET /?", tail.as_bytes(), b"\r\n\r\n"].concat(), true);
        }
    }
}
