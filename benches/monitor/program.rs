//! A running program: its output, with times, its CPU time and memory, and its end.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

/// The longest that anything may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// The output of one write, and when it was read.
#[derive(Debug, Clone)]
pub struct Chunk {
    pub at: Instant,
    pub text: Vec<u8>,
}

/// A running program, killed when this is dropped.
pub struct Program {
    child: Child,
    printed: Arc<Mutex<Vec<Chunk>>>,
    reader: Option<JoinHandle<()>>,
}

impl Program {
    /// Starts it in the network namespace of the calling thread.
    pub fn start(command: &mut Command) -> Result<Self> {
        let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = started.with_context(|| format!("cannot start {command:?}"))?;
        let printed = Arc::default();
        let stdout = child.stdout.take().context("the child has no stdout")?;
        let kept = Arc::clone(&printed);
        let reader = std::thread::spawn(move || read(stdout, &kept));
        Ok(Self { child, printed, reader: Some(reader) })
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn process(&self) -> Result<Process> {
        Process::new(self.child.id().cast_signed()).context("the program is gone")
    }

    /// All its output so far.
    pub fn chunks(&self) -> Vec<Chunk> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same as text.
    pub fn text(&self) -> String {
        let all = self.chunks().into_iter().flat_map(|chunk| chunk.text).collect::<Vec<u8>>();
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Waits until it has printed that it is ready.
    pub fn ready(self) -> Result<Self> {
        let give_up = Instant::now() + DEADLINE;
        while !self.text().contains("ready") {
            ensure!(Instant::now() < give_up, "a program did not get ready");
            sleep(Duration::from_millis(5));
        }
        Ok(self)
    }

    /// Waits for its end, and returns its output.
    pub fn finish(mut self) -> Result<String> {
        let status = self.child.wait().context("cannot wait for a program")?;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        ensure!(status.success(), "a program of the traffic failed: {status}");
        Ok(self.text())
    }

    /// Waits for its end, and returns how many of its connections or processes succeeded and how many failed.
    pub fn connections(self) -> Result<(u32, u32)> {
        let printed = self.finish()?;
        let last = printed.lines().last().and_then(|line| line.split_once(' '));
        let (made, failed) = last.with_context(|| format!("no count of connections: {printed}"))?;
        Ok((made.parse()?, failed.parse()?))
    }

    /// The CPU time that it and its ended children have used.
    pub fn cpu_s(&self) -> Result<f64> {
        let stat = self.process()?.stat().context("cannot read a program's CPU time")?;
        let children = stat.cutime.max(0).cast_unsigned() + stat.cstime.max(0).cast_unsigned();
        Ok((stat.utime + stat.stime + children) as f64 / procfs::ticks_per_second() as f64)
    }

    /// Its peak resident memory, in KiB.
    pub fn peak_kib(&self) -> Result<u64> {
        self.process()?.status()?.vmhwm.context("no VmHWM")
    }

    /// The memory that its BPF maps may take in the kernel, in KiB: `memlock` of bpf(2) in proc_pid_fdinfo(5).
    pub fn kernel_kib(&self) -> Result<u64> {
        let of_map = |file: std::io::Result<std::fs::DirEntry>| {
            // A descriptor may be closed meanwhile.
            let text = std::fs::read_to_string(file.ok()?.path()).ok()?;
            text.lines().any(|line| line.starts_with("map_id:")).then_some(())?;
            text.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse::<u64>().ok()
        };
        let files = std::fs::read_dir(format!("/proc/{}/fdinfo", self.child.id())).context("the program is gone")?;
        Ok(files.filter_map(of_map).sum::<u64>() / 1024)
    }

    /// Its present resident memory, in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        self.process()?.status()?.vmrss.context("no VmRSS")
    }
}

impl Program {
    /// Ends it by SIGINT, and waits until it has ended.
    pub fn interrupt(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).context("cannot send a signal")?;
        self.child.wait().context("cannot wait for a program")?;
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(mut from: impl Read, printed: &Mutex<Vec<Chunk>>) {
    // The time of a chunk must tell when the program wrote it, not how long this thread waited for a core.
    let round_robin = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, round_robin);
    let mut buffer = [0; 65_536];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                let chunk = Chunk { at: Instant::now(), text: buffer[..length].to_vec() };
                printed.lock().unwrap_or_else(PoisonError::into_inner).push(chunk);
            }
        }
    }
}
