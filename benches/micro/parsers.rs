//! What reads input from outside, on recorded input.

use std::hint::black_box;

use bwmon::config::{Diagnostics, applications, notifications};
use bwmon::kernel::conntrack::{ctnetlink, text};
use bwmon::kernel::netlink::messages;
use bwmon::kernel::process::Processes;
use bwmon::python2::pattern::Pattern;
use bwmon::workload::cgroup::Cgroup;
use serde_json::Value;

use crate::measure::print_each;

const CONNTRACK_TEXT: &[u8] = include_bytes!("../../tests/fixtures/nf_conntrack-6.18.txt");
const CONNTRACK_NETLINK: &[u8] = include_bytes!("../../tests/fixtures/ctnetlink-6.18.bin");
const CGROUPS: &str = include_str!("../../tests/fixtures/cgroups.jsonl");
const GROUPS: &[u8] = include_bytes!("../../group.sample.cfg");
const NOTIFICATIONS: &[u8] = include_bytes!("../../notifications.sample.cfg");
const COMMAND_LINE: &[u8] =
    b"/usr/lib/firefox/firefox -contentproc -parentBuildID 20261101 -prefsLen 31202 -isForBrowser tab 4711 ";

pub fn run() {
    println!("| parsers | ns, median | lowest | highest |");
    println!("|---|---|---|---|");
    let lines: Vec<&[u8]> = CONNTRACK_TEXT.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    print_each("a line of /proc/net/nf_conntrack", lines.len(), || {
        for line in &lines {
            black_box(text::parse(black_box(line)));
        }
    });
    let flows = messages(CONNTRACK_NETLINK).count();
    print_each("a message of ctnetlink", flows, || {
        for message in messages(black_box(CONNTRACK_NETLINK)) {
            black_box(ctnetlink::parse(message.payload));
        }
    });
    let cgroups: Vec<Vec<u8>> = CGROUPS
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["cgroup"].as_str().map(|text| text.into()))
        .collect();
    print_each("a cgroup, with its unit or container", cgroups.len(), || {
        for text in &cgroups {
            let cgroup = Cgroup::parse(black_box(text), b"");
            black_box(cgroup.as_ref().map(|cgroup| cgroup.workload().user));
        }
    });
    let (processes, own) = (Processes::new("/proc"), std::process::id());
    print_each("a process: stat, command line, cgroup, user, program", 1, || {
        processes.begin_tick();
        drop(black_box(processes.read(own)));
    });
    print_each(
        "an application, with its patterns",
        applications("", GROUPS, &mut Diagnostics::default()).len(),
        || {
            black_box(applications("groups", black_box(GROUPS), &mut Diagnostics::default()));
        },
    );
    let rules = notifications("", NOTIFICATIONS, &mut Diagnostics::default()).len();
    print_each("a notification", rules, || {
        black_box(notifications("notifications", black_box(NOTIFICATIONS), &mut Diagnostics::default()));
    });
    for (name, pattern) in [
        ("a word that does not match a command line", "chromium"),
        ("alternatives that match", "chrom(e|ium)|firefox"),
        ("look-ahead, which does not match", r"firefox(?!-bin).*--profile"),
    ] {
        let pattern = Pattern::new(pattern.as_bytes()).expect(pattern);
        print_each(name, 1, || {
            black_box(pattern.matches_command_line(black_box(COMMAND_LINE)));
        });
    }
}
