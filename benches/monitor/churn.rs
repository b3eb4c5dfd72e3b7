//! Memory and punctuality of runmonitor over minutes, while some connections stay open and others come and go.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use crate::Ours;
use crate::namespace::Namespace;
use crate::peers::Peer;
use crate::punctuality::{lateness, refreshes};
use crate::scale::hold;
use crate::table::{self, median, most, number};

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    ours: Ours,
    /// How many connections stay open
    #[arg(long, default_value_t = 20_000)]
    flows: usize,
    /// How many processes hold them
    #[arg(long, default_value_t = 2)]
    processes: usize,
    /// How many connections a second come and go
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// For how many seconds to measure
    #[arg(long, default_value_t = 300)]
    seconds: u64,
}

const CHURN_PORT: u16 = 7001;
const CALM_PORT: u16 = 7002;
const HELD_PORT: u16 = 7101;

/// The time in which the monitor has nothing to do, so that its refreshes show its schedule.
const CALM: Duration = Duration::from_millis(4500);
/// The time after which memory should no longer grow: by then, everything that is kept for a minute has been dropped
/// once.
const WARM_S: usize = 60;
/// The number of seconds that one line of the table covers.
const LINE_S: usize = 30;

/// A sample, one each second.
struct Sample {
    at: Instant,
    resident_kib: u64,
}

pub fn run(options: &Options) -> Result<()> {
    let namespace = Namespace::tracked()?;
    let _churn_server = namespace.play("churn-server", &format!("echo {CHURN_PORT}"))?.ready()?;
    let _calm_server = namespace.play("calm-server", &format!("echo {CALM_PORT}"))?.ready()?;
    let _calm = namespace.play("calm-client", &format!("hold 127.0.0.1:{CALM_PORT} 1"))?.ready()?;
    println!("{} connections held, {} a second come and go", options.flows, options.rate);
    let monitor = Peer::Runmonitor.start(&namespace, &options.ours)?;
    sleep(CALM);
    let calm_until = Instant::now();
    let _held = hold(&namespace, HELD_PORT, options.flows, options.processes)?;
    // Leave out the work of reading the new connections, which the other benchmarks measure.
    sleep(CALM);
    let churn = format!("storm 127.0.0.1:{CHURN_PORT} 0 {} 0 {}", options.rate, options.seconds);
    let churn = namespace.play("churn-client", &churn)?;
    let (cpu_s, start) = (monitor.cpu_s()?, Instant::now());
    let samples: Result<Vec<Sample>> = (0..=options.seconds)
        .map(|second| {
            sleep((start + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
            Ok(Sample { at: Instant::now(), resident_kib: monitor.resident_kib()? })
        })
        .collect();
    let samples = samples?;
    let cpu_s = monitor.cpu_s()? - cpu_s;
    let (made, failed) = churn.connections()?;
    println!("{made} connections came and went, {failed} failed");
    let shown = refreshes(&monitor.chunks());
    let late = lateness(&shown, calm_until);
    let late: Vec<(Instant, f64)> = shown.into_iter().zip(late).filter(|(at, _)| *at >= start).collect();
    show(&samples, &late);
    let mib = |sample: Option<&Sample>| sample.map_or(f64::NAN, |sample| sample.resident_kib as f64 / 1024.0);
    println!(
        "memory after {WARM_S} s {} MiB, at the end {} MiB, at most {} MiB",
        number(mib(samples.get(WARM_S)), 1),
        number(mib(samples.last()), 1),
        number(monitor.peak_kib()? as f64 / 1024.0, 1),
    );
    println!("latest refresh {} ms", number(most(late.iter().map(|(_, late)| late * 1000.0)), 0));
    println!("CPU {} s per second", number(cpu_s / options.seconds as f64, 3));
    Ok(())
}

fn show(samples: &[Sample], late: &[(Instant, f64)]) {
    let mut rows = Vec::new();
    let mut begin = 0;
    while begin + 1 < samples.len() {
        let end = (begin + LINE_S).min(samples.len() - 1);
        let memory = || samples[begin..=end].iter().map(|sample| sample.resident_kib as f64 / 1024.0);
        let window = samples[begin].at..samples[end].at;
        let late_ms = || late.iter().filter(|(at, _)| window.contains(at)).map(|(_, late)| late * 1000.0);
        rows.push([
            format!("{begin}-{end}"),
            number(median(memory()), 1),
            number(most(memory()), 1),
            late_ms().count().to_string(),
            number(median(late_ms()), 0),
            number(most(late_ms()), 0),
        ]);
        begin = end;
    }
    table::print(["seconds", "MiB, median", "most", "refreshes", "late ms, median", "most"], &rows);
}
