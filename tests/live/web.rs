//! The server of --http as those see it for whom it is made: a browser, and Prometheus.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bwmon::history::{History, HistorySettings, Kept, Moved};
use bwmon::traffic::subject::Subject;
use jiff::tz::TimeZone;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::http::{exchange, get, served_at};
use crate::common::program::{Running, wait_for};
use crate::common::runmonitor::{Traffic, runmonitor};
use crate::support::browser::Browser;
use crate::support::harness::{Lack, Outcome, needs_command};
use crate::support::netns::{Namespace, address, host_and_remote};
use crate::support::role::{start_role, stay, tell, told};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/prometheus");
/// The bytes of the transfer that Prometheus is to find.
const TRANSFER: u64 = 64 << 20;

/// Plays the roles of this module, and says whether `role` is one.
pub fn play(role: &[&str]) -> bool {
    match *role {
        ["sends-transfer", peer] => {
            let mut stream = TcpStream::connect(peer).unwrap();
            let chunk = vec![7; 1 << 20];
            (0..TRANSFER >> 20).for_each(|_| stream.write_all(&chunk).unwrap());
            stay();
        }
        ["receives-transfer", address] => {
            let listener = TcpListener::bind((address, 0)).unwrap();
            tell(listener.local_addr().unwrap().port());
            let mut stream = listener.accept().unwrap().0;
            let mut buffer = vec![0; 1 << 20];
            while let Ok(1..) = stream.read(&mut buffer) {}
        }
        _ => return false,
    }
    true
}

fn needs(command: &str, package: &str) -> Outcome {
    needs_command(command, &["--version"]).map_err(|Lack(lack)| Lack(format!("{lack}, of Debian's package {package}")))
}

/// Runs promtool on a file, or on its stdin.
fn promtool(arguments: &[&str], stdin: &str) {
    let mut promtool = Command::new("promtool");
    promtool.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {said}\n{stdin}");
}

pub fn promtool_accepts_the_metrics_the_rules_and_the_configuration() -> Outcome {
    needs("promtool", "prometheus")?;
    let _traffic = Traffic::named("a\"b\\c\n{}");
    let program = Running::start(&mut runmonitor(&["--http=0", "--metrics-labels=unit,container,user"]));
    let server = served_at(&program);
    let metrics = wait_for("a series", || {
        let text = get(server, "/metrics").body;
        text.contains("\nbwmon_tick_duration_seconds_count 2\n").then_some(text)
    });
    promtool(&["check", "metrics"], &metrics);
    promtool(&["check", "rules", &format!("{EXAMPLES}/rules.yml")], "");
    promtool(&["check", "config", &format!("{EXAMPLES}/prometheus.yml")], "");
    // The dashboard and the rules ask for what there is.
    let known = |name: &str| metrics.lines().any(|line| line.starts_with(name));
    for file in ["rules.yml", "dashboard.json"] {
        let text = fs::read_to_string(Path::new(EXAMPLES).join(file)).unwrap();
        let names = text.split(|c: char| !c.is_ascii_alphanumeric() && !"_:".contains(c));
        for name in names.filter(|name| name.starts_with("bwmon_") && !name.contains(':')) {
            assert!(known(name), "{file} asks for {name}");
        }
    }
    Ok(())
}

/// runaggregator in a namespace, which counts the processes of one name as the application Transfer.
fn aggregator(namespace: &Namespace, directory: &Path, process: &str, address: &str) -> (Running, SocketAddr) {
    fs::write(directory.join("a.cfg"), "[Transfer]\na=^(sender|receiver)@\n").unwrap();
    let monitors = format!("{process}.cfg");
    fs::write(directory.join(&monitors), format!("[{process}]\ntype=monitor\ninclude=^{process}@\n")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_runaggregator"));
    command.current_dir(directory).args(["--source=sockets", "--app-config=a.cfg"]);
    command.arg(format!("--monitor-config={monitors}")).arg(format!("--http={address}:0"));
    let program = namespace.run(|| Running::start(&mut command));
    let server = served_at(&program);
    (program, server)
}

pub fn prometheus_finds_a_known_transfer_on_two_hosts() -> Outcome {
    needs("prometheus", "prometheus")?;
    let (host, remote) = host_and_remote();
    let directory = TempDir::new().unwrap();
    let ends = [address(1), address(2)].map(|[v4, _]| v4);
    let (_here, here) = aggregator(&host, directory.path(), "sender", &ends[0]);
    let (_there, there) = aggregator(&remote, directory.path(), "receiver", &ends[1]);
    let targets = format!("[{{targets: ['{here}', '{there}']}}]");
    let config = format!("scrape_configs: [{{job_name: bwmon, scrape_interval: 1s, static_configs: {targets}}}]\n");
    fs::write(directory.path().join("prometheus.yml"), config).unwrap();
    // In a namespace of its own, any port is free.
    let mut command = Command::new("prometheus");
    command.current_dir(directory.path()).args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
    let _prometheus = Running::start(command.arg("--web.listen-address=127.0.0.1:9090"));
    let prometheus: SocketAddr = "127.0.0.1:9090".parse().unwrap();
    wait_for("Prometheus", || TcpStream::connect(prometheus).ok());
    let query = |expression: &str| {
        let request =
            format!("GET /api/v1/query?query={expression} HTTP/1.1\r\nHost: {prometheus}\r\nConnection: close\r\n\r\n");
        let answer: Value = serde_json::from_str(&exchange(prometheus, request.as_bytes()).body).ok()?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse::<f64>().ok()
    };
    wait_for("two scraped instances", || query("sum(up)").filter(|&up| up == 2.0));

    let receiver = start_role(&remote, "receiver", &format!("receives-transfer {}", ends[1]));
    let port = told(&receiver);
    let _sender = start_role(&host, "sender", &format!("sends-transfer {}:{port}", ends[1]));
    for way in ["receive", "transmit"] {
        // What is counted is the payload.
        let sum = format!("sum(bwmon_application_{way}_bytes_total%7Bapplication=%22Transfer%22%7D)");
        let found = wait_for("the whole transfer", || query(&sum).filter(|&bytes| bytes >= TRANSFER as f64));
        assert!(found <= TRANSFER as f64 * 1.005, "{way}: {found}");
        let all = query(&format!("sum(bwmon_{way}_bytes_total)")).unwrap();
        assert!(all >= found, "{way}: {all} in all");
    }
    Ok(())
}

/// A history of three days, in which two applications moved bytes in each hour.
fn history(file: &Path) {
    let settings = HistorySettings {
        file: file.to_owned(),
        remotes: false,
        kept: Kept::default(),
        zone: TimeZone::system(),
        interval_s: 60,
    };
    let mut history = History::open(settings).unwrap();
    let named = |name: &str| Arc::new(Subject::Named(name.as_bytes().into()));
    let groups = [named("nginx"), named("<b>hostile</b>")];
    let begin = SystemTime::now() - Duration::from_secs(3 * 86_400);
    for tick in 0..3 * 24 * 6 {
        let moved = groups.iter().zip([5, 1]).map(|(group, n)| Moved { group, uid: None, bytes: [n << 20, n << 18] });
        history.record(begin + Duration::from_secs(tick * 600), moved, &|_| {});
        wait_for("the history", || history.ask_for_sums("", 0).then_some(()));
    }
    assert_eq!(history.finish(), [""; 0]);
}

pub fn the_page_shows_the_history_in_a_browser() -> Outcome {
    let mut browser = Browser::start().map_err(|Lack(lack)| Lack(format!("{lack}, of Debian's package chromium")))?;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("history");
    history(&file);
    let history = format!("--history={}", file.display());
    let program = Running::start(&mut runmonitor(&["--http=0", &history]));
    let url = format!("http://{}/", served_at(&program));
    for (width, scheme) in [(1280, "light"), (360, "dark")] {
        browser.open(&url, width, scheme);
        let is = |browser: &mut Browser, what: &str, expression: &str| {
            wait_for(what, || browser.evaluate(expression).as_bool().filter(|is| *is));
        };
        is(&mut browser, "the choice of times", "!!document.querySelector('#span:not([hidden])')");
        browser.evaluate("document.getElementById('tm').click()");
        is(&mut browser, "the names", "document.querySelectorAll('#pastbody tr').length >= 2");
        let names = browser.evaluate("document.getElementById('pastbody').textContent");
        assert!(names.as_str().is_some_and(|names| names.contains("<b>hostile</b>")), "{names}");
        assert_eq!(
            browser.evaluate("[document.getElementById('ch').textContent, past.step_seconds, past.steps]")[1],
            3600
        );
        let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("history-{width}-{scheme}.png"));
        fs::write(picture, browser.picture()).unwrap();
        // A click narrows a month down to a day, and a day to an hour; Escape goes back.
        let key = |browser: &mut Browser, key: &str| {
            let event = format!("new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}})");
            browser.evaluate(&format!("document.getElementById('pastplot').dispatchEvent({event})"));
        };
        let click = "{ const box = pastPlot.getBoundingClientRect(); \
            for (const kind of ['pointermove', 'click']) pastPlot.dispatchEvent(new MouseEvent(kind, \
            {clientX: box.left + box.width * 0.97, clientY: box.top + 9, bubbles: true})); }";
        browser.evaluate(click);
        is(&mut browser, "a day", "ranges.length === 2 && past?.steps * past?.step_seconds >= 23 * 3600");
        is(&mut browser, "bars", "past.series.length >= 2");
        browser.evaluate("pastAt = 9");
        key(&mut browser, "ArrowRight");
        key(&mut browser, "Enter");
        is(&mut browser, "an hour", "ranges.length === 3 && past?.steps * past?.step_seconds <= 7200");
        key(&mut browser, "Escape");
        is(&mut browser, "the day again", "ranges.length === 2 && !!past");
        let fits = browser.evaluate("document.documentElement.scrollWidth <= innerWidth");
        assert_eq!(fits, true, "it is wider than {width}");
        browser.evaluate("document.getElementById('tl').click()");
        is(&mut browser, "the live chart", "document.getElementById('plot').clientHeight > 0 && ranges.length === 0");
        let (complaints, _) = browser.events();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
    Ok(())
}

pub fn the_page_shows_what_moves_in_a_browser() -> Outcome {
    let mut browser = Browser::start().map_err(|Lack(lack)| Lack(format!("{lack}, of Debian's package chromium")))?;
    let traffic = Traffic::new();
    let hostile = Traffic::named("<img src=x onerror=document.body.remove()>\u{202e}");
    let include = format!("--include=^({}|<img)", traffic.name);
    let program = Running::start(&mut runmonitor(&["--http=0", &include]));
    let url = format!("http://{}/", served_at(&program));
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")] {
        browser.open(&url, width, scheme);
        let row = |name: &str| {
            format!("[...document.querySelectorAll('#body .t')].find(e => e.textContent.includes('{name}'))")
        };
        wait_for("the row of a process", || {
            browser.evaluate(&format!("!!{}", row(&traffic.name))).as_bool().filter(|is| *is)
        });
        wait_for("the second tick", || {
            browser.evaluate("program.ticks > 1 && lostSince === null").as_bool().filter(|is| *is)
        });
        // What others have named themselves is text, and can be seen.
        let text = format!("{}?.textContent", row("<img src=x"));
        let shown = browser.evaluate(&text);
        assert!(shown.as_str().is_some_and(|shown| shown.contains("\\u{202e}")), "{shown}: {}", hostile.name);
        assert_eq!(browser.evaluate("document.images.length"), 0);
        // A row opens, and has the other end of its connection.
        browser.evaluate(&format!("{}.closest('button').click()", row(&traffic.name)));
        let remote = "document.querySelector('tr.d:not([hidden]) .mono')?.textContent";
        let remote = browser.evaluate(remote);
        assert!(remote.as_str().is_some_and(|remote| remote.starts_with("tcp 127.0.0.1:")), "{remote}");
        let fits = browser.evaluate("document.documentElement.scrollWidth <= innerWidth");
        assert_eq!(fits, true, "it is wider than {width}");
        let background = browser.evaluate("getComputedStyle(document.body).backgroundColor");
        assert_eq!(background == "rgb(255, 255, 255)", scheme == "light", "{background}");
        // The keyboard filters.
        browser.evaluate("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '/', bubbles: true}))");
        assert_eq!(browser.evaluate("document.activeElement.id"), "filter");
        let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{width}-{scheme}.png"));
        fs::write(picture, browser.picture()).unwrap();
        let (complaints, requests) = browser.events();
        assert!(complaints.is_empty(), "{complaints:#?}");
        let foreign = requests.iter().find(|request| !request.starts_with(&url) && !request.starts_with("data:"));
        assert_eq!(foreign, None);
    }
    drop(program);
    wait_for("the message that nobody answers", || {
        browser.evaluate("document.querySelector('.notice.on.bad')?.textContent").as_str().map(str::to_owned)
    });
    Ok(())
}
