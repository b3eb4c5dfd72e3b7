//! runpipe: forwards a TCP port and shows how many bytes pass through it.

use std::net::IpAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::process::ExitCode;
use std::time::Duration;

use bwmon::pipe::PipeSettings;
use bwmon::program;
use bwmon::python2::int;
use bwmon::traffic::rates::BYTES_PER_KB;
use clap::Parser;

/// Forwards a TCP port to another host, and shows how many bytes went each way
#[derive(Parser)]
#[command(name = "runpipe", version, infer_long_args = true, args_override_self = true)]
struct Args {
    /// Port to listen on
    #[arg(value_name = "PORT", value_parser = int::port, allow_negative_numbers = true)]
    port: u16,
    /// Name or address of the host to forward to
    #[arg(value_name = "REMOTE-HOST")]
    host: String,
    /// Port to forward to [default: PORT]
    #[arg(value_name = "REMOTE-PORT", value_parser = int::port, allow_negative_numbers = true)]
    remote_port: Option<u16>,
    /// Listen on this address only [default: all, IPv4 and IPv6]
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// Move at most this many kB (of 1024 bytes) per second in each direction; 0 is no limit
    #[arg(long, value_name = "KB_PER_S")]
    limit: Option<u64>,
    /// Keep at most this many connections open; further clients wait
    #[arg(long, value_name = "N")]
    max_connections: Option<NonZeroUsize>,
    /// Keep at most this many connections of one client open, and refuse its further ones. A client is an IPv4 address,
    /// or an IPv6 network of 64 bits
    #[arg(long, value_name = "N")]
    max_per_client: Option<NonZeroUsize>,
    /// Wait at most this many seconds for each address of REMOTE-HOST to accept a connection
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    connect_timeout: u32,
    /// Close connections in which nothing has moved for this many seconds
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    idle_timeout: Option<u32>,
}

fn main() -> ExitCode {
    let args: Args = match program::cli::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(code) => return code,
    };
    let settings = PipeSettings {
        bind: args.bind,
        limit_bytes_per_s: args.limit.and_then(|kb| NonZeroU64::new(kb.saturating_mul(BYTES_PER_KB))),
        max_connections: args.max_connections,
        max_per_client: args.max_per_client,
        connect_timeout: Duration::from_secs(args.connect_timeout.into()),
        idle_timeout: args.idle_timeout.map(|seconds| Duration::from_secs(seconds.into())),
        ..PipeSettings::new(args.port, args.host, args.remote_port.unwrap_or(args.port))
    };
    program::exit_code("runpipe", program::pipe::run(settings))
}
