//! A pipe that counts: `target/debug/examples/pipe PORT HOST TARGET-PORT` forwards a port until its last connection has ended.
//!
//! The pipe has threads of its own. Its bytes can be read at any time.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bwmon::pipe::{Pipe, PipeSettings};
use bwmon::traffic::source::Source;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [port, host, target_port] = &words[..] else { bail!("usage: pipe PORT HOST TARGET-PORT") };
    let number = |word: &str| word.parse().with_context(|| format!("a port is a number from 0 to 65535, not {word}"));
    let mut pipe = Pipe::bind(PipeSettings::new(number(port)?, host, number(target_port)?))?;
    // Port 0 is any free one.
    println!("listening on {}", pipe.local_address());
    loop {
        // First, so that the totals of a pipe that has finished are final.
        let is_finished = pipe.is_finished();
        for reading in pipe.read(Instant::now())? {
            println!("{} {} {}", reading.bytes_in, reading.bytes_out, reading.subject.recorded_name());
            if reading.bytes_in + reading.bytes_out > 0 && pipe.connections() == 0 {
                pipe.stop_accepting();
            }
        }
        for note in pipe.notes() {
            eprintln!("{note}");
        }
        if is_finished {
            return Ok(());
        }
        sleep(Duration::from_millis(200));
    }
}
