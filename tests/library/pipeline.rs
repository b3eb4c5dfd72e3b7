//! The monitor from recorded tables to exact lines, compared with the lines that the original printed for them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use crate::common::vectors::{bytes, list, vectors};
use crate::fake_proc::{FakeProc, FakeProcess};
use bwmon::ledger::Selection;
use bwmon::ledger::selection::Filter;
use bwmon::monitor::{Monitor, MonitorSettings};
use bwmon::output::Moment;
use bwmon::output::text::{self, Figures};
use bwmon::program::Program;
use bwmon::program::one_source::OneSource;
use bwmon::python2::pattern::Pattern;
use serde_json::Value;

/// A case in which the output differs from the original's.
struct Difference {
    case: &'static str,
    because: &'static str,
    /// The output at each tick.
    shown: &'static [&'static str],
}

const DIFFERENCES: &[Difference] = &[
    Difference {
        case: "bandwidth_new_process",
        because: "a process shows from its first tick",
        shown: &[
            "",
            "     70000 /        700 -- curl -s http://y/ \n",
            "      1000 /        100 -- curl -s http://y/ \n",
        ],
    },
    Difference {
        case: "stale_rows_double",
        because: "a connection that moved to another row is counted once",
        shown: &[
            "",
            "",
            "      3000 /       1000 -- wget http://x/ \n",
            "      6000 /       2000 -- wget http://x/ \n",
        ],
    },
    Difference {
        case: "port_pair_reused",
        because: "a connection with the ports of an earlier one adds to it",
        shown: &[
            "     50000 /      10000 -- wget http://x/ \n",
            "     50200 /      10100 -- wget http://x/ \n",
            "     50900 /      10300 -- wget http://x/ \n",
        ],
    },
    Difference {
        case: "port_pair_reused_bandwidth",
        because: "nothing moves a negative number of bytes",
        shown: &["", "       200 /        100 -- wget http://x/ \n", "       700 /        200 -- wget http://x/ \n"],
    },
    Difference {
        case: "port_pair_reused_no_lookback",
        because: "what an earlier connection had carried is not taken off a new one",
        shown: &["", "       200 /        100 -- wget http://x/ \n"],
    },
    Difference {
        case: "first_seen_without_owner",
        because: "what a connection carried before its owner was found is the owner's too",
        shown: &["", "      6200 /       5100 -- wget http://x/ \n", "      6200 /       5100 -- wget http://x/ \n"],
    },
    Difference {
        case: "udp_not_counted",
        because: "a UDP flow is not that of the TCP socket with its ports",
        shown: &[""],
    },
    Difference {
        case: "udp_same_ports_as_tcp",
        because: "a UDP flow is not that of the TCP socket with its ports",
        shown: &["        20 /         10 -- wget http://x/ \n"],
    },
    Difference {
        case: "proc_nf_conntrack_format",
        because: "the lines of /proc/net/nf_conntrack are read too",
        shown: &["        20 /         10 -- wget http://x/ \n"],
    },
    Difference {
        case: "blank_conntrack_line",
        because: "a blank line is passed over",
        shown: &["        20 /         10 -- wget http://x/ \n"],
    },
    Difference {
        case: "dnat",
        because: "a translated connection is counted both ways, and once",
        shown: &[
            "      9000 /       1000 -- wget http://x/ \n",
            "      9000 /       1000 -- wget http://x/ \n",
            "      9000 /       1000 -- wget http://x/ \n",
            "      9000 /       1000 -- wget http://x/ \n",
        ],
    },
    Difference {
        case: "ignore_local",
        because: "all of 127.0.0.0/8 is local",
        shown: &["        10 /        300 -- p3 \n        10 /        600 -- p6 \n        10 /        700 -- p7 \n"],
    },
    Difference { case: "dnat_bandwidth", because: "a translated connection is counted once", shown: &["", "", ""] },
    Difference {
        case: "filter_include_dollar",
        because: "$ matches behind the last argument, with and without the blank there",
        shown: &["        20 /         10 -- wget http://x/ \n"],
    },
    Difference {
        case: "truncate_utf8",
        because: "60 characters are 60 characters, and bytes that are none are escaped",
        shown: &[
            "         1 /          1 -- äääääääääääääääääääääääääääääabc \n         1 /          2 -- ääääääääääääääääääääääääääääää\n         1 /          3 -- \\xff\\xfe\\xff\\xfe\\xff\\xfe\\xff\\xfe\\xff\\xfe\\xff\\xfe\\xff\\xfe...\n",
        ],
    },
    Difference {
        case: "control_bytes",
        because: "a command line cannot move the cursor or begin a line",
        shown: &["         5 /          5 -- sh -c a\\nb \\u{1b}[31m \n"],
    },
    Difference {
        case: "include_match_dollar_newline",
        because: "a command line cannot move the cursor or begin a line",
        shown: &["        20 /         10 -- foo\\n\n"],
    },
    Difference {
        case: "empty_cmdline",
        because: "a process without command line goes by its short name",
        shown: &["        20 /         10 -- [task]\n"],
    },
    Difference {
        case: "clock_stands",
        because: "the time that passes is measured, not the wall clock's",
        shown: &["", "        10 /         10 -- wget http://x/ \n"],
    },
    Difference {
        case: "clock_back",
        because: "the time that passes is measured, not the wall clock's",
        shown: &["", "     10000 /       5000 -- wget http://x/ \n"],
    },
    Difference {
        case: "clock_forward",
        because: "the time that passes is measured, not the wall clock's",
        shown: &[
            "      1000 /       1000 -- wget http://x/ \n",
            "      1700 /       1500 -- wget http://x/ \n",
            "      1900 /       1600 -- wget http://x/ \n",
        ],
    },
];

/// The output for a case, tick by tick.
fn play(case: &Value) -> Vec<String> {
    let options = &case["options"];
    let bandwidth = options["mode"] == "bandwidth";
    let patterns = |regexes: &Value| list(regexes).iter().map(|regex| Pattern::new(regex).unwrap()).collect();
    let selection = Selection {
        filter: Filter::new(patterns(&options["include"]), patterns(&options["exclude"])),
        ignore_local: options["ignorelocal"] == true,
    };
    let settings = MonitorSettings {
        selections: vec![selection],
        lookback: options["lookback"] != false && !bandwidth,
        ..MonitorSettings::default()
    };

    let host = FakeProc::new();
    let monitor = Monitor::from_files(host.root(), settings);
    let mut program = OneSource::new(monitor);
    let figures = if bandwidth { Figures::Rates } else { Figures::Totals };
    let start = Instant::now();
    let mut running = BTreeMap::new();
    let ticks = case["ticks"].as_array().unwrap();
    let recorded = |number: usize| ticks[number]["time"].as_f64().unwrap() - ticks[0]["time"].as_f64().unwrap();
    let wall_clock_set = name(case).starts_with("clock_");
    let play = |(number, tick): (usize, &Value)| {
        // In a case where the wall clock is set, one second passes at each tick all the same.
        let seconds = if wall_clock_set { number as f64 } else { recorded(number) };
        run_processes(&host, &tick["fds"], &mut running, number as u64);
        host.write("net/tcp", bytes(&tick["tcp"]));
        host.write("net/nf_conntrack", bytes(&tick["conntrack"]));
        let monotonic = start + Duration::from_secs_f64(seconds);
        let frame = program.tick(Moment { monotonic, wall_clock: SystemTime::UNIX_EPOCH }, true).unwrap();
        assert_eq!(frame.notes, [""; 0]);
        String::from_utf8(text::table(figures, &frame)).unwrap()
    };
    ticks.iter().enumerate().map(play).collect()
}

/// Makes those processes run that hold the descriptors of a tick, and no other. `running` has the tick at which each began.
fn run_processes(host: &FakeProc, descriptors: &Value, running: &mut BTreeMap<u32, u64>, tick: u64) {
    let mut processes: BTreeMap<u32, (Vec<u8>, Vec<u32>)> = BTreeMap::new();
    for descriptor in descriptors.as_array().unwrap() {
        let command_line = bytes(&descriptor[2]).iter().map(|byte| if *byte == b' ' { 0 } else { *byte }).collect();
        let pid = number(&descriptor[1]);
        let (_, sockets) = processes.entry(pid).or_insert((command_line, Vec::new()));
        sockets.push(number(&descriptor[0]));
    }
    running.retain(|pid, _| {
        processes.contains_key(pid) || {
            host.end(*pid);
            false
        }
    });
    for (pid, (command_line, sockets)) in &processes {
        let start_time = *running.entry(*pid).or_insert(tick);
        host.run(&FakeProcess { pid: *pid, start_time, command_line, sockets });
    }
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap().try_into().unwrap()
}

fn name(case: &Value) -> &str {
    case["name"].as_str().unwrap()
}

/// The cases of the monitor: those whose names do not begin with `agg_`.
fn cases() -> Vec<Value> {
    let all = vectors(include_str!("../vectors/pipeline.json"));
    all.into_iter().filter(|case| !name(case).starts_with("agg_")).collect()
}

/// The output of the original, tick by tick.
fn recorded(case: &Value) -> Vec<String> {
    let text = |tick: &Value| String::from_utf8_lossy(&bytes(&tick["stdout"])).into_owned();
    case["expect"].as_array().unwrap().iter().map(text).collect()
}

#[test]
fn every_case_gives_the_lines_of_the_original_or_a_listed_difference() {
    for case in cases() {
        let shown = play(&case);
        match DIFFERENCES.iter().find(|difference| difference.case == name(&case)) {
            None => assert_eq!(shown, recorded(&case), "{}", name(&case)),
            Some(listed) => assert_eq!(shown, listed.shown, "{}: {}", listed.case, listed.because),
        }
    }
}

#[test]
fn each_listed_difference_differs_from_the_original() {
    let cases = cases();
    for difference in DIFFERENCES {
        let case = cases.iter().find(|case| name(case) == difference.case).expect(difference.case);
        let ended = case["expect"].as_array().unwrap().iter().any(|tick| tick.get("ends").is_some());
        assert!(ended || recorded(case) != difference.shown, "{} is no difference", difference.case);
    }
}
