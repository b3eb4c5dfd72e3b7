//! An invented host, for tests of what is shown.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::output::{Frame, Moment};
use crate::traffic::detail::{Detail, Remote, RemoteBytes};
use crate::traffic::rates::Row;
use crate::traffic::source::Facts;
use crate::traffic::subject::{Reason, Subject};
use crate::workload::cgroup::Cgroup;

/// Command line, cgroup, bytes in and out per second.
const BIG: [(&str, &str, u64, u64); 8] = [
    ("/usr/sbin/nginx -g daemon off; ", "/system.slice/nginx.service", 3_105_305, 66_579_088),
    ("/usr/bin/rclone sync b2:archive /srv/archive ", "/user.slice/session-7.scope", 28_209_494, 545_385),
    ("/usr/bin/node /app/server.js ", "/system.slice/shop.service", 5_991_900, 10_133_255),
    ("postgres: 16/main: shop shop 172.18.0.3(43122) SELECT", "/system.slice/postgresql.service", 3_341_408, 7_604_209),
    ("/usr/bin/restic backup --one-file-system /srv ", "/system.slice/backup.service", 244_246, 149_092),
    ("/usr/bin/redis-server 127.0.0.1:6379 ", "/system.slice/redis-server.service", 113_030, 252_846),
    (
        "/usr/bin/prometheus --storage.tsdb.path=/var/lib/prometheus ",
        "/system.slice/prometheus.service",
        227_228,
        35_715,
    ),
    ("/bin/registry serve /etc/docker/registry/config.yml ", "/system.slice/registry.service", 107_285, 79_468),
];
const SMALL: [&str; 6] = [
    "php-fpm: pool www ",
    "gunicorn: worker shop-",
    "/usr/lib/firefox/firefox -contentproc -childID ",
    "rsync --server -logDtpre.iLsfxCIvu . /srv/m",
    "/usr/bin/celery -A tasks worker -n w",
    "curl -fsS https://api.example.org/v2/items/",
];

/// A frame with so many processes after so many seconds.
pub(crate) fn frame(rows: usize, seconds: u64) -> Frame {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_113_460);
    let mut frame = Frame::at(Moment { monotonic: Instant::now(), wall_clock: start });
    frame.interval = (seconds > 0).then_some(Duration::from_secs(1));
    frame.facts = Facts { counters: Some("packets"), ..Facts::default() };
    frame.rows = (0..rows).map(|at| row(at, seconds)).collect();
    frame
}

/// The frame with bytes without an owner.
pub(crate) fn frame_with_unowned(rows: usize, seconds: u64) -> Frame {
    let mut frame = frame(rows, seconds);
    let subject = Arc::new(Subject::Unowned(Reason::Forwarded));
    let bytes = 40_000 * seconds;
    frame.unowned = vec![Row { subject, detail: None, ..of_bytes((bytes, bytes), (40_000, 40_000)) }];
    frame
}

fn row(at: usize, seconds: u64) -> Row {
    let (command_line, cgroup, rate_in, rate_out) = match BIG.get(at) {
        Some((command_line, cgroup, rate_in, rate_out)) => ((*command_line).to_owned(), *cgroup, *rate_in, *rate_out),
        None => {
            let name = format!("{}{at} ", SMALL[at % SMALL.len()]);
            (name, "/system.slice/shop.service", 9_000_000 / (at as u64 * 13), 7_000_000 / (at as u64 * 11))
        }
    };
    let subject = Subject::Processes {
        command_line: command_line.into_bytes().into(),
        uid: Some(if at.is_multiple_of(3) { 0 } else { 4_000_001 }),
        cgroup: Cgroup::parse(format!("0::{cgroup}").as_bytes(), b""),
        executable: None,
        nameless: false,
    };
    // It goes up and down, each in its own time.
    let wave = |rate: u64| rate * (10 + (seconds / 4 + at as u64 * 7) % 5) / 12;
    let detail = Detail {
        processes: vec![(800 + 7 * at as u32, 1)],
        connections: 1 + at as u64 % 9,
        remotes: (1..=3).map(|last| end(last, (rate_in >> last, rate_out >> last), seconds)).collect(),
        other_remotes: ((rate_in >> 3) * seconds, (rate_out >> 3) * seconds),
    };
    Row {
        subject: Arc::new(subject),
        detail: Some(Arc::new(detail)),
        ..of_bytes((rate_in * seconds, rate_out * seconds), (wave(rate_in), wave(rate_out)))
    }
}

fn end(last: u8, (moved_in, moved_out): (u64, u64), seconds: u64) -> RemoteBytes {
    let remote =
        Remote { address: Ipv4Addr::new(203, 0, 113, last).into(), port: 51_000 + u16::from(last), protocol: 6 };
    RemoteBytes {
        remote,
        name: None,
        bytes_in: moved_in * seconds,
        bytes_out: moved_out * seconds,
        moved_in,
        moved_out,
    }
}

fn of_bytes((bytes_in, bytes_out): (u64, u64), (moved_in, moved_out): (u64, u64)) -> Row {
    let subject = Arc::new(Subject::Unowned(Reason::NoProcess));
    Row { subject, bytes_in, bytes_out, moved_in, moved_out, detail: None }
}
