use std::collections::BTreeSet;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStringExt;

use super::*;
use crate::grouping::Application;
use crate::ledger::Selection;
use crate::notify::{Interval, Rule};
use crate::python2::pattern::Pattern;
use crate::python2::shlex;
use serde_json::Value;

/// The vectors that we read differently on purpose, and why.
const DEVIATIONS: [(&str, &[&str]); 8] = [
    (
        "without exclude, the original excluded everything; now it excludes nothing",
        &["only_type", "type_comment", "type_unknown", "include", "include_twice", "exclude_empty"],
    ),
    (
        "ignorelocal ended the program; now it is true or false",
        &["ignorelocal_true", "ignorelocal_false", "ignorelocal_1", "default_ignorelocal"],
    ),
    (
        "a port that does not exist failed at the first connection; now it fails at the start",
        &["pipe_port_sign", "pipe_port_big"],
    ),
    ("an empty host meant this host, by accident", &["pipe_newhost_empty"]),
    ("notification_threshold was documented, but had no effect", &["doc_key"]),
    ("the threshold exceeds 64 bits: no traffic reaches it, nor the highest that a rule can hold", &["thr_big"]),
    (
        "an unclosed quote ended the program at the first notification; now it is an error at the start",
        &["cmd_semicolon2"],
    ),
    ("an invalid pattern is an error in every key", &["bad_regex_is_not_checked_here"]),
];

/// Subjects on which the patterns of the vectors differ.
const PROBES: [&str; 16] =
    ["", "ssh", "foo", "foo#bar", "foo.x", "foo!x", "x", "y", "q", "b", "zzz", "a\nb", "a b", "100%", "1", "2"];

/// Whether a pattern matches the same subjects as the one in a vector.
fn same(pattern: &Pattern, expected: &Value) -> bool {
    let expected = Pattern::new(expected.as_str().unwrap().as_bytes()).unwrap();
    PROBES.iter().all(|probe| pattern.is_match(probe.as_bytes()) == expected.is_match(probe.as_bytes()))
}

/// Whether a selection selects the same subjects as the two patterns of a vector together.
fn same_selection(selection: &Selection, expected: &Value) -> bool {
    let matches = |key: &str, probe: &str| {
        let pattern = expected[key][0].as_str().unwrap();
        Pattern::new(pattern.as_bytes()).unwrap().matches_command_line(probe.as_bytes())
    };
    expected["ignorelocal"] == selection.ignore_local
        && PROBES.iter().all(|probe| {
            selection.filter.matches(probe.as_bytes()) == (matches("include", probe) && !matches("exclude", probe))
        })
}

fn same_monitors(read: &Monitors, expected: &[Value]) -> bool {
    let of_kind = |kind: &str| expected.iter().filter(|e| e["kind"] == kind).collect::<Vec<_>>();
    let (monitors, pipes) = (of_kind("monitor"), of_kind("pipe"));
    read.selections.len() == monitors.len()
        && read.pipes.len() == pipes.len()
        && read.selections.iter().zip(monitors).all(|(selection, expected)| same_selection(selection, expected))
        && read.pipes.iter().zip(pipes).all(|(pipe, expected)| {
            expected["port"] == pipe.pipe.port
                && latin1(&expected["newhost"]) == pipe.pipe.target_host.as_bytes()
                && expected["newport"] == pipe.pipe.target_port
        })
}

fn same_applications(read: &[Application], expected: &[Value]) -> bool {
    read.len() == expected.len()
        && read.iter().zip(expected).all(|(application, expected)| {
            let patterns = expected["regexes"].as_array().unwrap();
            expected["app"] == *application.name
                && application.patterns.len() == patterns.len()
                && application.patterns.iter().zip(patterns).all(|((_, pattern), expected)| same(pattern, expected))
        })
}

fn same_notifications(read: &[Rule], expected: &[Value]) -> bool {
    read.len() == expected.len()
        && read.iter().zip(expected).all(|(read, expected)| {
            let interval = match read.interval {
                Interval::Seconds(seconds) => expected["interval"] == seconds,
                Interval::WholeRun => expected["interval"].as_i64() <= Some(0),
            };
            let command = expected["command"].as_str().unwrap().as_bytes();
            let words: Vec<_> = shlex::split(command).unwrap_or_default().into_iter().map(OsString::from_vec).collect();
            same(&read.process_filter, &expected["process_filter"])
                && expected["in_threshold"] == read.in_threshold_kb_per_s.unwrap_or(0)
                && expected["out_threshold"] == read.out_threshold_kb_per_s.unwrap_or(0)
                && interval
                && read.notification_command.clone().unwrap_or_default() == words
        })
}

/// The vectors hold one character per byte.
fn latin1(text: &Value) -> Vec<u8> {
    text.as_str().unwrap().chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

#[test]
fn files_are_read_as_the_original_read_them() {
    let vectors: Value = serde_json::from_str(include_str!("../../tests/vectors/ini-consumers.json")).unwrap();
    let mut deviations = Vec::new();
    for kind in ["app_config", "monitor_config", "notification_config"] {
        for vector in vectors[kind].as_array().unwrap() {
            let (text, expected) = (latin1(&vector["input"]), &vector["expect"]);
            let result = expected["result"].as_array().unwrap();
            let mut diagnostics = Diagnostics::default();
            let same = match kind {
                "app_config" => same_applications(&applications("f", &text, &mut diagnostics), result),
                "monitor_config" => same_monitors(&monitors("f", &text, &mut diagnostics), result),
                _ => same_notifications(&notifications("f", &text, &mut diagnostics), result),
            };
            let failed = diagnostics.has_errors();
            // The original reported an unknown type on stdout.
            let unknown =
                diagnostics.sorted().iter().any(|diagnostic| diagnostic.message.starts_with("unknown monitor type"));
            let agrees = if expected["error"].is_null() { same && !failed } else { failed };
            if !agrees || unknown != (expected["stdout"] != "") {
                deviations.push(vector["name"].as_str().unwrap());
            }
        }
    }
    let mut expected: Vec<&str> = DEVIATIONS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    expected.sort();
    deviations.sort();
    assert_eq!(deviations, expected);
}

fn lines(diagnostics: Diagnostics) -> Vec<String> {
    diagnostics.sorted().iter().map(Diagnostic::to_string).collect()
}

#[test]
fn every_mistake_in_a_monitors_file_has_a_message_that_says_what_would_be_right() {
    let text = b"\
[General]
type=monitor
exlude=ssh
ignorelocal=maybe
colour=red
[Pipe]
type=pipe
port=22x
newport=99999
junk
[Fine]
type=pipe
port=8080
newhost=khan\\.thpinfo\\.com
newport=80
shape_threshold=-1
include=x
[Twice]
type=pipe
port=8080
newhost=h
newport=80
[Type]
[Typo]
type=Monitor
";
    let mut diagnostics = Diagnostics::default();
    let read = monitors("m.cfg", text, &mut diagnostics);
    assert_eq!((read.selections.len(), read.pipes.len()), (1, 1));
    assert_eq!(
        lines(diagnostics),
        [
            "m.cfg:3: warning: [General] exlude: unknown key, did you mean exclude?",
            "m.cfg:4: [General] ignorelocal: \"maybe\" is neither true nor false",
            "m.cfg:5: warning: [General] colour: unknown key; the keys here are type, include, exclude, ignorelocal",
            "m.cfg:6: [Pipe] newhost: missing; add a line such as newhost=example.org",
            "m.cfg:8: [Pipe] port: \"22x\" is not a whole number such as 8080",
            "m.cfg:9: [Pipe] newport: \"99999\" is not between 1 and 65535",
            "m.cfg:10: [Pipe] neither '=' nor ':'; write key=value, not \"junk\"",
            "m.cfg:14: warning: [Fine] newhost: a host name has no backslash, and this is not a pattern",
            "m.cfg:16: [Fine] shape_threshold: \"-1\" is not between 0 and 4294967295",
            "m.cfg:17: warning: [Fine] include: unknown key; the keys here are type, port, newhost, newport, \
             shape_threshold, max_per_client, threads",
            "m.cfg:20: [Twice] port: 8080 is already the port of [Fine] in line 13",
            "m.cfg:23: [Type] type: missing; add a line such as type=monitor",
            "m.cfg:25: warning: [Typo] type: unknown monitor type \"Monitor\", section ignored; the type is monitor \
             or pipe",
        ]
    );
}

#[test]
fn a_mistake_in_default_is_reported_once_in_its_own_line() {
    let text = b"[DEFAULT]\nport=x\nignorelocal=yes\ntypo=1\nnewhost=h\nnewport=1\n[A]\ntype=pipe\n[B]\ntype=pipe\n";
    let mut diagnostics = Diagnostics::default();
    monitors("m.cfg", text, &mut diagnostics);
    assert_eq!(
        lines(diagnostics),
        [
            "m.cfg:2: [DEFAULT] port: \"x\" is not a whole number such as 8080",
            "m.cfg:4: warning: [DEFAULT] typo: unknown key, did you mean type?",
        ]
    );
}

#[test]
fn an_unknown_key_that_a_value_refers_to_is_not_reported() {
    let mut diagnostics = Diagnostics::default();
    monitors("m.cfg", b"[A]\nbrowsers=firefox|chrom\ntype=monitor\ninclude=(%(browsers)s)\n", &mut diagnostics);
    monitors("m.cfg", b"[DEFAULT]\nx=y\n[A]\ntype=monitor\n[B]\ntype=monitor\ninclude=%(x)s\n", &mut diagnostics);
    assert_eq!(lines(diagnostics), [""; 0]);
}

#[test]
fn notification_threshold_replaces_a_missing_threshold() {
    let text = b"[A]\nprocess_filter=x\nnotification_threshold=7\nin_threshold=0\n";
    let mut diagnostics = Diagnostics::default();
    let read = notifications("n.cfg", text, &mut diagnostics);
    assert_eq!((read[0].in_threshold_kb_per_s, read[0].out_threshold_kb_per_s), (None, Some(7)));
    assert_eq!(lines(diagnostics), [""; 0]);
}

#[test]
fn the_user_of_commands_is_one_of_this_host_and_only_root_names_another() {
    let read = |user: &str| {
        let text = format!("[A]\nprocess_filter=x\nin_threshold=5\nnotification_user={user}\n");
        let mut diagnostics = Diagnostics::default();
        let rules = notifications("n.cfg", text.as_bytes(), &mut diagnostics);
        (rules.into_iter().find_map(|rule| rule.user).is_some(), lines(diagnostics))
    };
    let is_root = nix::unistd::geteuid().is_root();
    assert!(read("root").0);
    let of_root =
        "n.cfg:4: [A] notification_user: only root can run commands as \"root\"; without this key, they run as you";
    assert_eq!(read("root").1, if is_root { vec![] } else { vec![of_root.to_owned()] });
    let nobody = "n.cfg:4: [A] notification_user: \"no such user\" is no user of this host";
    assert_eq!(read("no such user"), (false, vec![nobody.to_owned()]));
    assert_eq!(
        read("a\0b"),
        (false, vec!["n.cfg:4: [A] notification_user: \"a\\0b\" is no user of this host".to_owned()])
    );
}

#[test]
fn every_mistake_in_a_notification_file_has_a_message() {
    let text = b"\
[Late]
proces_filter=x
out_threshold=5.5
interval=soon
repeat=-1
notification_command=sh -c \"a ; b\"
recovery_command='' x
[Never]
process_filter=[
";
    let mut diagnostics = Diagnostics::default();
    assert!(notifications("n.cfg", text, &mut diagnostics).is_empty());
    let mut lines = lines(diagnostics);
    assert!(lines.pop().unwrap().starts_with("n.cfg:9: [Never] process_filter: \"[\" is not a valid pattern: "));
    assert_eq!(
        lines,
        [
            "n.cfg:1: [Late] process_filter: missing; add a line such as process_filter=firefox",
            "n.cfg:2: warning: [Late] proces_filter: unknown key, did you mean process_filter?",
            "n.cfg:3: [Late] out_threshold: \"5.5\" is not a whole number such as 50",
            "n.cfg:4: [Late] interval: \"soon\" is not a whole number such as 5",
            "n.cfg:5: [Late] repeat: \"-1\" is not between 0 and 4294967295",
            "n.cfg:6: [Late] notification_command: \"sh -c \\\"a\" is not a valid command: a quote is opened and not \
             closed (a ; after a blank begins a comment; write it without the blank)",
            "n.cfg:7: [Late] recovery_command: \"'' x\" names no program",
            "n.cfg:8: warning: [Never] notification_threshold: missing, so this section never notifies; \
             add a threshold in kB/s",
        ]
    );
}

#[test]
fn a_section_name_is_printed_without_control_characters() {
    let mut diagnostics = Diagnostics::default();
    monitors("m.cfg", b"[\x1b[2J]\n", &mut diagnostics);
    assert_eq!(lines(diagnostics), ["m.cfg:1: [\\u{1b}[2J] type: missing; add a line such as type=monitor"]);
}

#[test]
fn what_a_file_says_twice_is_reported_with_both_lines() {
    let text = b"[A]\nprocess_filter=x\nin_threshold=5\nIn_Threshold=6\n[B]\nprocess_filter=y\nin_threshold=1\n[A]\n\
        in_threshold=7\n[DEFAULT]\nrepeat=1\nrepeat=2\n";
    let mut diagnostics = Diagnostics::default();
    let read = notifications("n.cfg", text, &mut diagnostics);
    assert_eq!(read[0].in_threshold_kb_per_s, Some(7));
    assert_eq!(
        lines(diagnostics),
        [
            "n.cfg:4: warning: [A] in_threshold: this replaces the same key in line 3; remove one of the two",
            "n.cfg:8: warning: [A] continues the section of line 1: together they are one, in which the last of equal \
             keys counts",
            "n.cfg:9: warning: [A] in_threshold: this replaces the same key in line 4; remove one of the two",
            "n.cfg:12: warning: [DEFAULT] repeat: this replaces the same key in line 11; remove one of the two",
        ]
    );
}

#[test]
fn a_command_that_cannot_run_is_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let text = format!(
        "[A]\nprocess_filter=x\nin_threshold=5\ninterval=-1\nnotification_command=/no/such/program x\n\
         recovery_command={}\n[B]\nprocess_filter=x\nin_threshold=5\nnotification_command=no-such-program\n\
         recovery_command=sh -c true\n",
        file.display()
    );
    let mut diagnostics = Diagnostics::default();
    assert_eq!(notifications("n.cfg", text.as_bytes(), &mut diagnostics).len(), 2);
    assert_eq!(
        lines(diagnostics),
        [
            "n.cfg:4: warning: [A] interval: -1 means the whole time since the start; for that, write 0".to_owned(),
            "n.cfg:5: warning: [A] notification_command: /no/such/program does not exist, so this command cannot run now"
                .to_owned(),
            format!(
                "n.cfg:6: warning: [A] recovery_command: {} is not a program that this user may run, so this command \
                 cannot run now",
                file.display()
            ),
            "n.cfg:10: warning: [B] notification_command: no-such-program is no program in any directory of PATH, so \
             this command cannot run now"
                .to_owned(),
        ]
    );
}

#[test]
fn a_nul_byte_in_a_name_a_host_or_a_command_is_an_error() {
    let pipe = "type=pipe\nport=0\nnewhost=h\nnewport=1\n";
    let text = format!("[A\0B]\ntype=monitor\n[P]\ntype=pipe\nport=0\nnewhost=a\0b\nnewport=1\n[Q]\n{pipe}[R]\n{pipe}");
    let mut diagnostics = Diagnostics::default();
    monitors("m.cfg", text.as_bytes(), &mut diagnostics);
    let text = b"[A]\nprocess_filter=x\nin_threshold=5\nnotification_command=echo a\0b\n";
    notifications("n.cfg", text, &mut diagnostics);
    assert_eq!(
        lines(diagnostics),
        [
            "m.cfg:1: [A\\u{0}B] a name has no NUL byte",
            "m.cfg:6: [P] newhost: a host name has no NUL byte",
            "m.cfg:15: warning: [R] port: the same pipe as [Q] in line 10, on another free port; give each a port",
            "n.cfg:4: [A] notification_command: \"echo a\\0b\" has a NUL byte, which no command can have",
        ]
    );
}

#[test]
fn the_sections_share_the_patterns_of_default() {
    // 100 patterns in 100 sections: compiled for each section, they would exceed the limit.
    let pattern = |n: usize| format!("k{n}=(foo|bar){{100}}{n}\n");
    let text = (0..100).map(pattern).collect::<String>();
    let text = format!("[DEFAULT]\n{text}{}", (0..100).map(|n| format!("[{n}]\n")).collect::<String>());
    let mut diagnostics = Diagnostics::default();
    let read = applications("a.cfg", text.as_bytes(), &mut diagnostics);
    assert_eq!((read.len(), read[99].patterns.len()), (100, 100));
    assert_eq!(lines(diagnostics), [""; 0]);
}

#[test]
fn patterns_that_take_too_much_memory_together_are_an_error() {
    let text: String = (0..4).map(|n| format!("k{n}=a{{90000}}{n}\n")).collect();
    let mut diagnostics = Diagnostics::default();
    applications("a.cfg", format!("[A]\n{text}").as_bytes(), &mut diagnostics);
    let lines = lines(diagnostics);
    assert_eq!(lines, ["a.cfg:5: [A] k3: the patterns of this file take more than 128 MiB together; use fewer"]);
}

#[test]
fn a_quota_has_a_size_a_period_and_a_first_day() {
    use crate::calendar::{Cycle, Period};
    use crate::notify::Quota;
    let read = |keys: &str| {
        let mut diagnostics = Diagnostics::default();
        let text = format!("[Q]\nprocess_filter=.\n{keys}");
        let rules = notifications("n.cfg", text.as_bytes(), &mut diagnostics);
        let text = lines(diagnostics).join("\n");
        (rules.into_iter().next().and_then(|rule| rule.quota), text)
    };
    let quota = |bytes, period, first_day, warn_percent| {
        Some(Quota { bytes, cycle: Cycle { period, first_day }, warn_percent })
    };
    for (keys, expected) in [
        ("quota=50 GB", quota(50 << 30, Period::Month, 1, Some(80))),
        ("quota=1.5MiB\nquota_starts=15\nquota_warn=0", quota(3 << 19, Period::Month, 15, None)),
        ("quota=7 kB\nquota_period=week\nquota_starts=7\nquota_warn=99", quota(7 << 10, Period::Week, 7, Some(99))),
        ("quota=1 TB\nquota_period=day", quota(1 << 40, Period::Day, 1, Some(80))),
        ("quota=0\nin_threshold=1", None),
    ] {
        assert_eq!(read(keys), (expected, String::new()), "{keys}");
    }
    for (keys, expected) in [
        ("quota=50", "n.cfg:3: [Q] quota: \"50\" is not a number of B, kB, MB, GB or TB such as 50 GB"),
        ("quota=many GB", "n.cfg:3: [Q] quota: \"many GB\" is not a number of B, kB, MB, GB or TB such as 50 GB"),
        (
            "quota=99999999 TB",
            "n.cfg:3: [Q] quota: \"99999999 TB\" is not a number of B, kB, MB, GB or TB such as 50 GB",
        ),
        ("quota=1 GB\nquota_period=year", "n.cfg:4: [Q] quota_period: \"year\" is not day, week or month"),
        ("quota=1 GB\nquota_starts=29", "n.cfg:4: [Q] quota_starts: \"29\" is not between 1 and 28"),
        ("quota=1 GB\nquota_period=week\nquota_starts=8", "n.cfg:5: [Q] quota_starts: \"8\" is not between 1 and 7"),
        ("quota=1 GB\nquota_warn=100", "n.cfg:4: [Q] quota_warn: \"100\" is not between 0 and 99"),
        (
            "quota=1 GB\nquota_period=day\nquota_starts=2",
            "n.cfg:5: warning: [Q] quota_starts: has no effect: a day begins at midnight",
        ),
        (
            "in_threshold=1\nquota_warn=70",
            "n.cfg:4: warning: [Q] quota_warn: has no effect without quota; add a line such as quota=50 GB",
        ),
    ] {
        assert_eq!(read(keys).1, expected, "{keys}");
    }
}

#[test]
fn the_threads_of_a_pipe_are_a_number_or_left_to_the_program() {
    let text =
        b"[DEFAULT]\ntype=pipe\nnewhost=h\nnewport=1\n[A]\nport=1\nthreads=3\n[B]\nport=2\n[C]\nport=3\nthreads=0\n";
    let mut diagnostics = Diagnostics::default();
    let monitors = monitors("m.cfg", text, &mut diagnostics);
    let threads: Vec<_> = monitors.pipes.iter().map(|section| section.pipe.threads.map(NonZeroUsize::get)).collect();
    assert_eq!(threads[..2], [Some(3), None]);
    assert_eq!(lines(diagnostics), ["m.cfg:12: [C] threads: \"0\" is not between 1 and 256"]);
}

#[test]
fn the_manual_page_describes_each_key() {
    let page = include_str!("../../packaging/man/bwmon.cfg.5");
    let lines: Vec<&str> = page.lines().collect();
    let is_entry = |lines: &&[&str]| [".TP", ".TQ"].contains(&lines[0]);
    let entries: BTreeSet<&str> =
        lines.windows(2).filter(is_entry).filter_map(|lines| lines[1].strip_prefix(".B ")).collect();
    let keys = monitors::MONITOR_KEYS.into_iter().chain(monitors::PIPE_KEYS).chain(notifications::KEYS);
    assert_eq!(entries, keys.chain(["unit.", "container.", "user.", "program."]).collect());
}

#[test]
fn the_examples_of_the_manual_page_have_no_mistake() {
    let page = include_str!("../../packaging/man/bwmon.cfg.5").replace("\\-", "-").replace("\\e", "\\");
    let examples: Vec<&str> = page.split("\n.EX\n").skip(1).map(|rest| rest.split("\n.EE\n").next().unwrap()).collect();
    let mut diagnostics = Diagnostics::default();
    assert_eq!(monitors::monitors("1", examples[0].as_bytes(), &mut diagnostics).selections.len(), 1);
    assert_eq!(monitors::monitors("2", examples[1].as_bytes(), &mut diagnostics).pipes.len(), 1);
    assert_eq!(applications("3", examples[2].as_bytes(), &mut diagnostics).len(), 2);
    let rules = notifications("4", examples[3].as_bytes(), &mut diagnostics);
    assert!(rules[0].quota.is_some() && rules[0].notification_command.is_some());
    assert_eq!(lines(diagnostics), Vec::<String>::new());
}
