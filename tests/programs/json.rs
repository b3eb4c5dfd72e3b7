//! --json: each line fits the schema in docs/, whoever has chosen the names in it, and the last record of a frame sums it up.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use boon::{Compiler, SchemaIndex, Schemas};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::program::{Running, listening_port, wait_for};
use crate::common::runmonitor::{Traffic, on_a_terminal, runmonitor};

/// The schema of a line.
pub struct Schema {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Schema {
    pub fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.enable_format_assertions();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.schema.json");
        let index = compiler.compile(path, &mut schemas).unwrap();
        Self { schemas, index }
    }

    /// The record in a line, which fits.
    pub fn record(&self, line: &str) -> Value {
        let record: Value = serde_json::from_str(line).unwrap();
        if let Err(error) = self.schemas.validate(&record, self.index) {
            panic!("{error:#}\n{line}");
        }
        record
    }
}

/// The records of whole frames; each frame is closed by a `tick` that sums it up.
fn frames(schema: &Schema, lines: &[String]) -> Vec<Vec<Value>> {
    let records: Vec<Value> = lines.iter().map(|line| schema.record(line)).collect();
    let frames: Vec<_> = records.split_inclusive(|record| record["kind"] == "tick").map(<[Value]>::to_vec).collect();
    for frame in &frames {
        let (tick, others) = frame.split_last().unwrap();
        assert_eq!(tick["kind"], "tick", "{tick}");
        let rows: Vec<_> = others.iter().filter(|record| record.get("in_bytes_total").is_some()).collect();
        assert_eq!(tick["records"], rows.len());
        for sum in ["in_bytes_total", "out_bytes_total", "in_bytes_per_second", "out_bytes_per_second"] {
            assert_eq!(tick[sum].as_u64().unwrap(), rows.iter().map(|row| row[sum].as_u64().unwrap()).sum::<u64>());
        }
        assert!(
            frame
                .iter()
                .filter(|record| record["kind"] != "note")
                .all(|record| record["timestamp"] == tick["timestamp"])
        );
    }
    frames
}

/// Runs a command to its end. Returns its lines on stdout.
fn lines(command: &mut Command) -> Vec<String> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Also where a file name or a command line is not UTF-8.
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A process that has received something by a connection, and calls itself as it likes.
struct Named {
    process: Child,
    _client: TcpStream,
}

impl Named {
    fn new(name: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = OwnedFd::from(listener.accept().unwrap().0);
        let mut cat = Command::new("cat");
        let process = cat.arg0(OsStr::from_bytes(name)).stdin(server).stdout(Stdio::null()).spawn().unwrap();
        client.write_all(&[7; 4000]).unwrap();
        Self { process, _client: client }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The bytes of a text field.
fn bytes(record: &Value, field: &str) -> Vec<u8> {
    match record.get(format!("{field}_hex")).and_then(Value::as_str) {
        Some(hex) => (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect(),
        None => record[field].as_str().unwrap().as_bytes().to_vec(),
    }
}

#[test]
fn names_that_others_choose_are_kept_byte_for_byte_and_can_be_printed() {
    let id = std::process::id();
    let names =
        [&b"caf\xff\xfe\xc3("[..], b"\x1b[2J\x07\x7f\"\\", "a\u{202e}b\u{200b}\u{2028}\u{85}\u{e0041}".as_bytes()];
    let names = names.map(|name| [name, id.to_string().as_bytes()].concat());
    let _processes = names.each_ref().map(|name| Named::new(name));
    let schema = Schema::new();
    let shown = lines(&mut runmonitor(&["--json", "--count=1"]));
    for line in &shown {
        assert!(
            !line.contains(|c: char| c.is_control() || "\u{202e}\u{200b}\u{2028}\u{e0041}".contains(c)),
            "{line:?}"
        );
    }
    let shown = &frames(&schema, &shown)[0];
    for name in names {
        let command_line = [&name[..], b" "].concat();
        let ours: Vec<_> = shown
            .iter()
            .filter(|record| record["kind"] == "process")
            .filter(|record| bytes(record, "command_line") == command_line)
            .collect();
        let [record] = ours[..] else { panic!("{ours:?} for {name:?}") };
        assert_eq!(record["in_bytes_total"], 4000);
        // Whoever reads only the text gets a string in any case.
        assert_eq!(record["command_line"], *String::from_utf8_lossy(&command_line));
        assert_eq!(record.get("command_line_hex").is_some(), std::str::from_utf8(&name).is_err());
        assert_eq!(record["uid"], nix::unistd::geteuid().as_raw());
        assert_eq!(record["connections"], 1);
    }
}

#[test]
fn every_line_of_runmonitor_fits_the_schema_and_the_ticks_sum_up() {
    let schema = Schema::new();
    let traffic = Traffic::new();
    for arguments in [
        &["--remotes=1", "--unowned", "--count=3", "--interval=0.2"][..],
        &["--group-by=program", "--remotes", "--count=2", "--interval=0.1"],
        &["--group-by=user", "--keep", "--count=1", "--interval=0.1"],
        &["--group-by=unit", "--count=1", "--interval=0.1"],
        &["--group-by=container", "--count=1", "--interval=0.1"],
    ] {
        let frames = frames(&schema, &lines(runmonitor(&["--json"]).args(arguments)));
        let count = arguments.iter().find_map(|argument| argument.strip_prefix("--count=")).unwrap();
        assert_eq!(frames.len(), count.parse::<usize>().unwrap(), "{arguments:?}");
        let kind = if arguments[0].starts_with("--group-by") { "group" } else { "process" };
        assert!(frames.iter().all(|frame| frame.iter().any(|record| record["kind"] == kind)), "{frames:?}");
    }
    let shown = frames(
        &schema,
        &lines(&mut runmonitor(&["--json", "--remotes=2", "--count=1", &format!("--include={}", traffic.name)])),
    );
    let [record, tick] = &shown[0][..] else { panic!("{shown:?}") };
    assert_eq!(
        (&record["remotes"][0]["address"], &record["remotes"][0]["in_bytes_total"]),
        (&"127.0.0.1".into(), &5000.into())
    );
    assert_eq!(tick["in_bytes_total"], 5000);
}

#[test]
fn a_number_of_refreshes_at_an_interval_is_shown_as_lines_on_a_terminal_and_as_records() {
    let traffic = Traffic::new();
    let include = format!("--include={}", traffic.name);
    let shown = lines(&mut runmonitor(&["--count=2", "--interval=0.2", &include]));
    assert_eq!(shown, vec![format!("      5000 /          0 -- {} ", traffic.name); 2]);
    let screen = on_a_terminal("xterm", &["--count=2", "--interval=0.2"], Signal::SIGTERM);
    // Each begins a synchronized update.
    assert_eq!(screen.matches("\x1b[?2026h").count(), 2, "{screen:?}");
    let frames = frames(&Schema::new(), &lines(&mut runmonitor(&["--json", "--count=1", "--interval=2.5", &include])));
    let [frame] = &frames[..] else { panic!("{frames:?}") };
    assert!(frame[1]["interval_microseconds"].as_u64().unwrap() > 2_000_000, "{frame:?}");
}

#[test]
fn every_line_of_runpipe_fits_the_schema() {
    let schema = Schema::new();
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_runpipe"));
    command.args(["--json", "--interval=0.1", "0", "127.0.0.1", &target.local_addr().unwrap().port().to_string()]);
    let mut pipe = Running::start(command.stdin(Stdio::null()));
    let port = listening_port(&pipe.stderr.line());
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"a request").unwrap();
    target.accept().unwrap().0.read_exact(&mut [0; 9]).unwrap();
    let mut seen: BTreeMap<String, Value> = BTreeMap::new();
    wait_for("the bytes of the pipe", || {
        let record = schema.record(&pipe.line());
        seen.insert(record["kind"].as_str().unwrap().to_owned(), record);
        (seen.get("pipe").is_some_and(|pipe| pipe["in_bytes_total"] == 9)).then_some(())
    });
    pipe.signal(Signal::SIGINT);
    drop(client);
    let (_, rest, _) = pipe.end();
    rest.iter().for_each(|line| drop(schema.record(line)));
    assert!(seen.contains_key("note"), "{seen:?}");
}

#[test]
fn every_line_of_runaggregator_fits_the_schema() {
    let schema = Schema::new();
    let directory = tempfile::TempDir::new().unwrap();
    let traffic = Traffic::new();
    let file = |name: &str, text: String| std::fs::write(directory.path().join(name), text).unwrap();
    file("a.cfg", format!("[Ours]\na={}\n[Mine]\nuser.me=^root$\n", traffic.name));
    file("n.cfg", "[All]\nprocess_filter=^\nin_threshold=1\ninterval=1\nnotification_command=/nonexistent\n".into());
    let mut command = Command::new(env!("CARGO_BIN_EXE_runaggregator"));
    command.current_dir(directory.path()).stdin(Stdio::null());
    command.args(["--source=sockets", "--app-config=a.cfg", "--notification-config=n.cfg", "--auto-group=unit"]);
    command.args(["--json", "--remotes", "--unowned", "--interval=0.2"]);
    let program = Running::start(&mut command);
    let mut seen: BTreeMap<String, Value> = BTreeMap::new();
    wait_for("a notification and a tick", || {
        // Enough for the threshold of 1 KiB/s.
        drop(Named::new(traffic.name.as_bytes()));
        for line in program.stdout.so_far() {
            let record = schema.record(&line);
            seen.insert(record["kind"].as_str().unwrap().to_owned(), record);
        }
        ["application", "notification", "tick", "note"].iter().all(|kind| seen.contains_key(*kind)).then_some(())
    });
}

#[test]
fn the_last_frame_of_a_number_is_written_in_full_however_slow_its_reader_is() {
    // A pipe of a page, and more in the frame than fits.
    let _processes: Vec<_> = (0..30).map(|n| Named::new(format!("slow{n}{}", "x".repeat(500)).as_bytes())).collect();
    let (reader, writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut child =
        runmonitor(&["--json", "--count=1", "--interval=0.1", "--include=slow"]).stdout(writer).spawn().unwrap();
    let mut reader = File::from(OwnedFd::from(reader));
    let mut text = vec![0; 1];
    reader.read_exact(&mut text).unwrap();
    // Longer than a program that does not wait for its reader would take to end.
    let ended = (0..50).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        child.try_wait().unwrap()
    });
    reader.read_to_end(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    let lines: Vec<String> = String::from_utf8(text).unwrap().lines().map(str::to_owned).collect();
    let frames = frames(&Schema::new(), &lines);
    assert_eq!((ended, frames.len(), frames[0].len()), (None, 1, 31));
}
