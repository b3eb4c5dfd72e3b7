//! CPU time, which a busy machine changes less than the time on the wall.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// How often each figure is measured.
const ROUNDS: usize = 15;
/// The least CPU time of a round.
const ROUND: Duration = Duration::from_millis(10);

/// The CPU time of all threads of this process.
pub fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("the CPU time of this process").into()
}

/// The median, the lowest and the highest of the CPU time that `work` takes.
pub struct Cost {
    pub median: Duration,
    pub lowest: Duration,
    pub highest: Duration,
}

impl Cost {
    pub fn of(mut all: Vec<Duration>) -> Self {
        all.sort();
        Self { median: all[all.len() / 2], lowest: all[0], highest: all[all.len() - 1] }
    }
}

/// Prints the CPU time that `work` takes for each of its `items`.
pub fn print_each(name: &str, items: usize, mut work: impl FnMut()) {
    let mut repeats = 1u32;
    let round = |repeats: u32, work: &mut dyn FnMut()| {
        let before = cpu_time();
        (0..repeats).for_each(|_| work());
        cpu_time() - before
    };
    while round(repeats, &mut work) < ROUND {
        repeats *= 2;
    }
    let cost = Cost::of((0..ROUNDS).map(|_| round(repeats, &mut work)).collect());
    let each_ns = |time: Duration| time.as_nanos() as f64 / f64::from(repeats) / items as f64;
    println!("| {name} | {:.0} | {:.0} | {:.0} |", each_ns(cost.median), each_ns(cost.lowest), each_ns(cost.highest));
}
