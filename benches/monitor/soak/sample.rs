//! What a program takes at a time, and whether it stays flat.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use bwmon::kernel::bpf::census;
use nix::unistd::Pid;

use super::NAMES;
use crate::table::{self, median, most, number};

/// BPF_MAP_TYPE_HASH (include/uapi/linux/bpf.h). The maps of other types have all their entries from the beginning, or make room
/// themselves.
const HASH: u64 = 1;

/// The file of a history and those that are a part of it.
pub struct Files([PathBuf; 2]);

impl Files {
    pub fn new(file: PathBuf) -> Self {
        let wal = PathBuf::from(format!("{}-wal", file.display()));
        Self([file, wal])
    }

    fn kib(&self) -> f64 {
        let bytes: u64 = self.0.iter().filter_map(|file| Some(fs::metadata(file).ok()?.len())).sum();
        bytes as f64 / 1024.0
    }
}

/// What is measured: its name with the unit, and by how much it may grow from the second quarter of the run to the last: by this
/// share, and this much. `None` for what is full only when it has as much as it may have.
pub struct Measure {
    pub name: &'static str,
    grows: Option<(f64, f64)>,
}

pub const MEASURES: [Measure; 7] = [
    Measure { name: "resident KiB", grows: Some((0.05, 1024.0)) },
    Measure { name: "proportional KiB", grows: Some((0.05, 1024.0)) },
    Measure { name: "anonymous KiB", grows: Some((0.05, 1024.0)) },
    Measure { name: "descriptors", grows: Some((0.05, 4.0)) },
    Measure { name: "threads", grows: Some((0.0, 1.0)) },
    // What has moved within a second or two, more if the machine is slow.
    Measure { name: "entries of BPF maps", grows: Some((0.5, 500.0)) },
    Measure { name: "history KiB", grows: None },
];

/// One sample: when it was taken, and the value of each measure.
pub struct Sample {
    pub at: Duration,
    pub values: [f64; MEASURES.len()],
}

impl Sample {
    pub fn take(pid: Pid, files: &Files, at: Duration) -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let (status, rollup) = (read("status")?, read("smaps_rollup")?);
        let value = |text: &str, key: &str| field(text, key).with_context(|| format!("no {key} of process {pid}"));
        let mut descriptors = 0;
        let mut entries = 0;
        let directory = format!("/proc/{pid}/fdinfo");
        for descriptor in fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))? {
            descriptors += 1;
            // It may have been closed meanwhile.
            let Ok(info) = fs::read_to_string(descriptor?.path()) else { continue };
            let (Some(map_type), Some(id)) = (field(&info, "map_type:"), field(&info, "map_id:")) else { continue };
            if map_type == HASH {
                entries += census::entries(u32::try_from(id)?).context("cannot count the entries of a map")?;
            }
        }
        let values = [
            value(&status, "VmRSS:")? as f64,
            value(&rollup, "Pss:")? as f64,
            value(&rollup, "Anonymous:")? as f64,
            f64::from(descriptors),
            value(&status, "Threads:")? as f64,
            entries as f64,
            files.kib(),
        ];
        Ok(Self { at, values })
    }
}

/// The number behind a key at the beginning of a line.
fn field(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// Writes all samples, one a line.
pub fn write(file: &Path, samples: &[Vec<Sample>; 2]) -> Result<()> {
    let mut text = String::from("seconds\tprogram");
    for measure in &MEASURES {
        let _ = write!(text, "\t{}", measure.name);
    }
    text.push('\n');
    for (name, samples) in NAMES.iter().zip(samples) {
        for sample in samples {
            let _ = write!(text, "{:.1}\t{name}", sample.at.as_secs_f64());
            sample.values.iter().for_each(|value| _ = write!(text, "\t{value:.0}"));
            text.push('\n');
        }
    }
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// A run that is shorter than this ends before all that a program keeps for a while has been there once: ten minutes of the
/// page's chart. It may grow by four times as much.
const LONG: Duration = Duration::from_secs(15 * 60);

/// Prints how the quarters differ; returns what grows.
pub fn show(samples: &[Vec<Sample>; 2], time: Duration) -> Vec<String> {
    let mut faults = Vec::new();
    let mut rows = Vec::new();
    let looser = if time < LONG { 4.0 } else { 1.0 };
    for (name, samples) in NAMES.iter().zip(samples) {
        for (index, measure) in MEASURES.iter().enumerate() {
            let all = || samples.iter().map(|sample| sample.values[index]);
            let quarter = |number: u32| {
                let within = time * number / 4..time * (number + 1) / 4;
                median(samples.iter().filter(|sample| within.contains(&sample.at)).map(|sample| sample.values[index]))
            };
            let (second, last) = (quarter(1), quarter(3));
            rows.push([
                format!("{name}: {}", measure.name),
                number(quarter(0), 0),
                number(second, 0),
                number(quarter(2), 0),
                number(last, 0),
                number(most(all()), 0),
            ]);
            if let Some((share, some)) = measure.grows
                && last > second * (1.0 + share * looser) + some * looser
            {
                faults.push(format!(
                    "{name}: {} grow from {second} in the second quarter to {last} in the last",
                    measure.name
                ));
            }
        }
    }
    table::print(["medians", "1st quarter", "2nd", "3rd", "last", "most"], &rows);
    faults
}
