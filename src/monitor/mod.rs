//! Traffic per process: the kernel's counters, joined with who owns the connections.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::attribution::Processes;
use crate::attribution::Reason;
use crate::attribution::per_tick::Owners;
use crate::attribution::watcher::{Seen, Watch};
use crate::kernel::conntrack::probe::{Tracking, probe};
use crate::kernel::conntrack::{Malformed, Table};
use crate::kernel::flow::{Counters, Flow, Tuple};
use crate::ledger::{Asked, Ledger, Selection};
use crate::python2::pattern::Pattern;
use crate::traffic::source::{Reading, Source};

/// What turns full counting on, on a host that has nftables.
pub const TURN_ON: &str = "nft 'add table inet bwmon; \
    add chain inet bwmon track { type filter hook input priority 0; }; \
    add rule inet bwmon track ct state invalid counter' && sysctl -w net.netfilter.nf_conntrack_acct=1";

/// What is counted without conntrack, and with nothing at all.
const PAYLOAD_ONLY: &str = "TCP payload per socket is counted, without UDP and without packet headers";
const NOTHING: &str = "nothing is counted";

/// The shortest time between two looks for network namespaces because of a flow that is at home nowhere known: one
/// costs a readlink(2) per process.
const SCAN_ON_DEMAND: Duration = Duration::from_secs(2);
/// The time after which they are looked for anyway: to let go of those that ended, and since a process may move to a new
/// one.
const SCAN_ANYWAY: Duration = Duration::from_secs(10);

/// The kernel's whole table is read at least each so many ticks, should an event have gone astray.
const WHOLE_TABLE_EACH: u32 = 10;
/// To look at so many hash chains of the table takes as long as to ask for one flow: 30 ns beside 4 µs.
const CHAINS_PER_FLOW: usize = 128;

/// So many ends are asked about with one reading of the sockets and one walk over the processes; each takes some 100
/// bytes meanwhile.
const ASKED_AT_A_TIME: usize = 40_000;

/// Where the counters come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum CountersFrom {
    /// Conntrack where it counts, the sockets where it does not.
    #[default]
    Auto,
    /// Conntrack: all of TCP and UDP, packet headers included.
    Conntrack,
    /// The sockets themselves: TCP payload.
    Sockets,
}

/// What to monitor.
#[derive(Debug, Default)]
pub struct Settings {
    /// What is counted: all that any of these takes. Nothing at all if there is none.
    pub selections: Vec<Selection>,
    /// Whether connections that are older than the monitor count from their own beginning.
    pub lookback: bool,
    /// Where the counters come from.
    pub counters_from: CountersFrom,
}

/// A source that counts per command line.
#[derive(Debug)]
pub struct Monitor {
    counters: Counting,
    owners: Owners,
    ledger: Ledger,
    notes: Notes,
}

/// What is read each tick.
#[derive(Debug)]
enum Counting {
    /// The table, and what came and went in between where the kernel tells.
    Conntrack(Table, Option<Watch>, Known),
    Sockets,
}

/// Where the events tell of every flow, those that are known are asked for one by one if they are few: the whole table is
/// read chain by chain, and most are empty.
#[derive(Debug)]
struct Known {
    /// So many flows are few.
    few: usize,
    /// For so many ticks the whole table was not read.
    ticks: u32,
}

impl Known {
    /// As this host has it.
    fn on_this_host() -> Self {
        let number = |name: &str| -> Option<usize> {
            let text = std::fs::read_to_string(Path::new("/proc/sys/net/netfilter").join(name)).ok()?;
            text.trim().parse().ok()
        };
        // Without the file there are events as a rule; 0 is that there are none.
        let told = number("nf_conntrack_events") != Some(0);
        let chains = number("nf_conntrack_buckets").filter(|_| told).unwrap_or_default();
        Self { few: chains / CHAINS_PER_FLOW, ticks: WHOLE_TABLE_EACH }
    }

    /// The flows to ask for; `None` if the whole table is to be read.
    fn flows(&mut self, ledger: &Ledger, complete: bool) -> Option<Vec<Tuple>> {
        let few = if complete && self.ticks < WHOLE_TABLE_EACH { ledger.tuples(self.few) } else { None };
        self.ticks = if few.is_some() { self.ticks + 1 } else { 1 };
        few
    }
}

/// What the user is told, each kind of thing once.
#[derive(Debug, Default)]
struct Notes {
    waiting: Vec<String>,
    said: HashSet<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    NotPermitted,
    Mangled,
    Lost,
}

impl Notes {
    fn once(&mut self, kind: Kind, text: impl FnOnce() -> String) {
        if self.said.insert(kind) {
            self.waiting.push(text());
        }
    }
}

impl Monitor {
    /// A monitor of this host.
    ///
    /// # Errors
    /// Where what [`Settings::counters_from`] asks for cannot be had.
    pub fn of_this_host(settings: Settings) -> Result<Self> {
        let mut notes = Vec::new();
        let mut ignored = None;
        let counters = match settings.counters_from {
            CountersFrom::Sockets => Counting::Sockets,
            wanted => match Table::open(Path::new("/proc")) {
                Ok(mut table) => {
                    let (tracking, tuple) = probe(&mut table)?;
                    ignored = tuple;
                    let counts = tracking == Tracking::Counts;
                    notes.extend(advice(tracking, wanted));
                    if counts || wanted == CountersFrom::Conntrack {
                        // Refused along with netlink; the table's text alone then tells less sharply.
                        Counting::Conntrack(table, Watch::start().ok(), Known::on_this_host())
                    } else {
                        Counting::Sockets
                    }
                }
                Err(error) if wanted == CountersFrom::Conntrack => return Err(error),
                Err(error) => {
                    notes.push(if nix::unistd::geteuid().is_root() {
                        format!("{error:#}, so {PAYLOAD_ONLY}. For full counting run: {TURN_ON}")
                    } else {
                        format!(
                            "conntrack is for root to read, so {PAYLOAD_ONLY}. For full counting run this as root \
                             (sudo), and where connections are not tracked yet: {TURN_ON}"
                        )
                    });
                    Counting::Sockets
                }
            },
        };
        let mut owners = Owners::of_this_host();
        match &counters {
            Counting::Conntrack(_, watch, _) => owners.note(watch.as_ref().and_then(Watch::connects)),
            Counting::Sockets => owners.subscribe_to_endings()?,
        }
        let mut ledger = Ledger::new(settings.selections, settings.lookback, Instant::now());
        ledger.ignore(ignored);
        Ok(Self { counters, owners, ledger, notes: Notes { waiting: notes, ..Notes::default() } })
    }

    /// A monitor of the files below `proc_root` alone, with the conntrack table in `net/nf_conntrack`.
    pub fn from_files(proc_root: &Path, settings: Settings) -> Self {
        Self {
            counters: Counting::Conntrack(
                Table::File(proc_root.join("net/nf_conntrack")),
                None,
                Known { few: 0, ticks: 0 },
            ),
            owners: Owners::from_files(proc_root),
            ledger: Ledger::new(settings.selections, settings.lookback, Instant::now()),
            notes: Notes::default(),
        }
    }

    /// Counts what any of these takes from now on.
    pub fn select(&mut self, selections: Vec<Selection>) {
        self.ledger.select(selections);
    }

    /// Enters all rows of this tick.
    fn read_rows(&mut self) -> Result<()> {
        self.owners.begin_tick();
        match &mut self.counters {
            Counting::Conntrack(table, watch, known) => {
                if let Some(watch) = watch {
                    watch.begin_tick();
                }
                enter_seen(watch.as_ref(), &mut self.ledger, &mut self.owners);
                let lost = watch.as_ref().is_some_and(Watch::has_lost);
                let ledger = &mut self.ledger;
                let flows = known.flows(ledger, watch.is_some() && !lost);
                let mut dump = || table.dump(&mut |flow| ledger.row(flow));
                let mangled = match (watch.as_ref(), flows) {
                    (_, Some(flows)) => table.get(&flows, &mut |flow| ledger.row(flow)),
                    (Some(watch), None) => watch.apart(dump),
                    (None, None) => dump(),
                }?;
                // Once more, for whose the connections are that began meanwhile: the table shows them already.
                enter_seen(watch.as_ref(), &mut self.ledger, &mut self.owners);
                if mangled.lines > 0 {
                    self.notes.once(Kind::Mangled, || {
                        let Malformed { lines, first } = mangled;
                        format!(
                            "{lines} lines of the conntrack table cannot be read and are left out, the first: {first}"
                        )
                    });
                }
                if lost {
                    self.notes.once(Kind::Lost, || {
                        "more connections come and go than can be followed: short ones are missing in part".into()
                    });
                }
            }
            Counting::Sockets => {
                let Some(namespaces) = self.owners.namespaces() else { return Ok(()) };
                let mut ended = Vec::new();
                for namespace in namespaces.iter_mut() {
                    let zone = namespace.id;
                    let ledger = &mut self.ledger;
                    // A namespace that ends while it is read has ended.
                    let read = namespace.diag.dump_flows(|flow| ledger.row(&Flow { zone, ..*flow }));
                    if zone == 0 {
                        read.context("cannot read the kernel's sockets (sock_diag)")?;
                    }
                    if namespace.diag.destroyed(|flow| ended.push(Flow { zone, ..*flow })) == Err(Errno::ENOBUFS) {
                        self.notes.once(Kind::Lost, || {
                            "more sockets end at once than can be read: the last bytes of some are missing".into()
                        });
                    }
                }
                ended.iter().for_each(|flow| self.ledger.ended(flow, &mut self.owners));
            }
        }
        Ok(())
    }

    /// Finds out what the ledger asks for.
    fn find_owners(&mut self, now: Instant) {
        let heirs = self.owners.newborn();
        self.scan_namespaces(now, SCAN_ANYWAY);
        self.ledger.inherit(&heirs, &mut |pid| self.owners.identify(pid));
        let asked = self.ledger.questions(&mut self.owners);
        self.ask(&asked);
        let strays = self.ledger.strays(&asked);
        if !strays.is_empty() && self.scan_namespaces(now, SCAN_ON_DEMAND) {
            self.ask(&strays);
        }
    }

    fn scan_namespaces(&mut self, now: Instant, interval: Duration) -> bool {
        let scanned = self.owners.scan_namespaces(now, interval);
        if scanned {
            self.ledger.came_home(&mut |tuple| self.owners.is_home(tuple));
            if let Counting::Conntrack(_, Some(watch), _) = &self.counters {
                watch.scan_namespaces();
            }
        }
        scanned
    }

    fn ask(&mut self, asked: &[Asked]) {
        for asked in asked.chunks(ASKED_AT_A_TIME) {
            let suspects = self.ledger.suspects(asked);
            let answers = self.owners.answer(asked.iter().map(|&asked| self.ledger.question(asked)), suspects);
            for (&asked, answer) in asked.iter().zip(answers) {
                self.ledger.answer(asked, answer, &mut |pid| self.owners.identify(pid));
            }
        }
    }
}

impl Source for Monitor {
    fn read(&mut self, now: Instant) -> Result<Vec<Reading>> {
        self.ledger.begin(now);
        self.read_rows()?;
        self.find_owners(now);
        self.ledger.credit();
        self.ledger.close(&mut self.owners);
        if self.owners.processes().some_unreadable() {
            self.notes.once(Kind::NotPermitted, || {
                "only your own processes are shown: whose the other sockets are is for root (sudo) to see".into()
            });
        }
        self.notes.waiting.extend(self.ledger.patterns_that_gave_up().filter_map(Pattern::note));
        Ok(self.ledger.readings())
    }

    fn unowned(&self) -> Vec<Reading> {
        let reading = |(reason, counters): (Reason, Counters)| Reading {
            name: format!("({reason})").into_bytes().into(),
            bytes_in: counters.reply,
            bytes_out: counters.original,
        };
        self.ledger.unowned().into_iter().map(reading).collect()
    }

    fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes.waiting)
    }
}

/// Enters what the watch has seen since it was last asked.
fn enter_seen(watch: Option<&Watch>, ledger: &mut Ledger, owners: &mut Owners) {
    for seen in watch.map(Watch::take).unwrap_or_default() {
        match seen {
            Seen::Started(process) => owners.started(*process),
            Seen::Opened(flow) => ledger.opened(&flow),
            Seen::Found(flow, found) => ledger.found(&flow, found),
            Seen::Ended(flow) => ledger.ended(&flow, owners),
        }
    }
}

/// What to tell a user whose conntrack does not count.
fn advice(tracking: Tracking, wanted: CountersFrom) -> Option<String> {
    let counted = if wanted == CountersFrom::Conntrack { NOTHING } else { PAYLOAD_ONLY };
    match tracking {
        Tracking::Counts => None,
        // The first sentence is the original's.
        Tracking::WithoutCounters => Some(format!(
            "WARNING: No 'bytes' field in output (use 'sysctl -w net.netfilter.nf_conntrack_acct=1' to enable \
             accounting. Until then {counted}"
        )),
        Tracking::Off => Some(format!(
            "conntrack tracks no connections on this host, since no firewall rule needs it, so {counted}. For full \
             counting run: {TURN_ON}"
        )),
    }
}
