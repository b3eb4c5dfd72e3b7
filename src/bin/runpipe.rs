//! runpipe: forwards a TCP port and shows how many bytes pass through it.

use std::net::IpAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use bwmon::output::Output;
use bwmon::output::json::{Json, Named};
use bwmon::output::text::{Figures, Text};
use bwmon::pipe::{self, PipeSettings};
use bwmon::privileges::{Needs, Opening};
use bwmon::program::{self, Signals, cli};
use bwmon::python2::int;
use bwmon::traffic::rates::BYTES_PER_KB;
use clap::{Parser, ValueHint};

/// Forwards a TCP port to another host, and shows how many bytes went each way.
///
/// Once a second, a line has the bytes that went in, from the clients to REMOTE-HOST, the bytes that came out, and the name of the
/// pipe. It counts what TCP carries, without headers, as soon as the kernel takes it for the receiver.
#[derive(Parser)]
#[command(
    name = "runpipe",
    version,
    infer_long_args = true,
    args_override_self = true,
    after_long_help = include_str!("help/runpipe.txt")
)]
struct Args {
    /// Port to listen on
    #[arg(value_name = "PORT", value_parser = int::port, allow_negative_numbers = true)]
    port: u16,
    /// Name or address of the host to forward to
    #[arg(value_name = "REMOTE-HOST", value_parser = cli::host, value_hint = ValueHint::Hostname)]
    host: String,
    /// Port to forward to [default: PORT]
    #[arg(value_name = "REMOTE-PORT", value_parser = cli::target_port, allow_negative_numbers = true)]
    remote_port: Option<u16>,
    /// Listen on this address only [default: all, IPv4 and IPv6]
    #[arg(long, value_name = "ADDRESS", value_parser = cli::address)]
    bind: Option<IpAddr>,
    /// Serve the connections with this many threads [default: half the number of CPUs that this program may use, from 2
    /// to 8; 1 on a single CPU]
    #[arg(long, value_name = "N", value_parser = cli::number(1..=pipe::MAX_THREADS as u32), allow_negative_numbers = true)]
    threads: Option<u32>,
    /// Move at most this many kB (of 1024 bytes) per second in each direction; 0 is no limit
    #[arg(long, value_name = "KB_PER_S", value_parser = cli::number(0..=u32::MAX), allow_negative_numbers = true)]
    limit: Option<u32>,
    /// Keep at most this many connections open; further clients wait
    #[arg(long, value_name = "N", value_parser = cli::number(1..=u32::MAX), allow_negative_numbers = true)]
    max_connections: Option<u32>,
    /// Keep at most this many connections of one client open, and refuse its further ones. A client is an IPv4 address,
    /// or an IPv6 network of 64 bits
    #[arg(long, value_name = "N", value_parser = cli::number(1..=u32::MAX), allow_negative_numbers = true)]
    max_per_client: Option<u32>,
    /// Wait at most this many seconds for each address of REMOTE-HOST to accept a connection
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = cli::number(1..=u32::MAX), allow_negative_numbers = true)]
    connect_timeout: u32,
    /// Close connections in which nothing has moved for this many seconds
    #[arg(long, value_name = "S", value_parser = cli::number(1..=u32::MAX), allow_negative_numbers = true)]
    idle_timeout: Option<u32>,
    #[command(flatten)]
    showing: cli::Showing,
}

fn main() -> ExitCode {
    let args: Args = match cli::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(code) => return code,
    };
    if args.port == 0 && args.remote_port.is_none() {
        return cli::usage_error::<Args>("PORT 0 is a free port of this host; name the REMOTE-PORT to forward to");
    }
    let settings = PipeSettings {
        bind: args.bind,
        threads: args.threads.and_then(|count| NonZeroUsize::new(count as usize)),
        limit_bytes_per_s: args.limit.and_then(|kb| NonZeroU64::new(u64::from(kb) * BYTES_PER_KB)),
        max_connections: args.max_connections.and_then(|count| NonZeroUsize::new(count as usize)),
        max_per_client: args.max_per_client.and_then(|count| NonZeroUsize::new(count as usize)),
        connect_timeout: Duration::from_secs(args.connect_timeout.into()),
        idle_timeout: args.idle_timeout.map(|seconds| Duration::from_secs(seconds.into())),
        ..PipeSettings::new(args.port, args.host, args.remote_port.unwrap_or(args.port))
    };
    program::exit_code("runpipe", start(settings, &args.showing))
}

fn start(settings: PipeSettings, showing: &cli::Showing) -> Result<()> {
    // Before the threads of the output start.
    let signals = Signals::take()?;
    let opening = Opening::begin(Needs::default().to_open(false))?;
    let mut output: Box<dyn Output> = match showing.json {
        true => Box::new(Json::new(Named::Pipe)),
        false => Box::new(Text::new(Figures::Totals).of("pipe", "pipes").wide(showing.wide)),
    };
    program::pipe::run(settings, &mut *output, showing.schedule(), signals, opening)
}

#[cfg(test)]
#[path = "../../tests/common/golden.rs"]
mod golden;
#[cfg(test)]
#[path = "../../tests/common/pages.rs"]
mod pages;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Args;

    #[test]
    fn the_manual_page_and_the_completions_are_those_of_this_command_line() {
        crate::pages::assert_pages(Args::command());
    }
}
