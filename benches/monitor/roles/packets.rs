//! A role that exchanges small packets as fast as it can, and reports what each costs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;

use super::say;

/// The payload of a packet.
const BYTES: usize = 64;
/// How many round trips or datagrams pass before the clock is read.
const AT_A_TIME: u32 = 64;

/// One end of a connection of either protocol.
enum End {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl End {
    fn send(&mut self) -> Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(&[b'x'; BYTES])?,
            Self::Udp(socket) => drop(socket.send(&[b'x'; BYTES])?),
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        let mut buffer = [0; BYTES];
        match self {
            Self::Tcp(stream) => stream.read_exact(&mut buffer)?,
            Self::Udp(socket) => drop(socket.recv(&mut buffer)?),
        }
        Ok(())
    }
}

/// Two ends that are connected over loopback.
fn connected(protocol: &str) -> Result<[End; 2]> {
    let any = (Ipv4Addr::LOCALHOST, 0);
    Ok(match protocol {
        "tcp" => {
            let listener = TcpListener::bind(any)?;
            let ends = [TcpStream::connect(listener.local_addr()?)?, listener.accept()?.0];
            ends.iter().try_for_each(|end| end.set_nodelay(true))?;
            ends.map(End::Tcp)
        }
        "udp" => {
            let ends = [UdpSocket::bind(any)?, UdpSocket::bind(any)?];
            ends[0].connect(ends[1].local_addr()?)?;
            ends[1].connect(ends[0].local_addr()?)?;
            ends.map(End::Udp)
        }
        _ => bail!("no such protocol: {protocol}"),
    })
}

/// Sends packets over loopback for a time: `trips` waits for an answer to each, and `flood` does not. Prints how many there were
/// a second, and the CPU time of both ends for each in µs.
pub fn exchange(protocol: &str, kind: &str, time: Duration) -> Result<()> {
    let [mut near, mut far] = connected(protocol)?;
    let is_flood = kind == "flood";
    // A round trip on one core is not a measurement of how cores wake each other up.
    stay_on(0)?;
    std::thread::spawn(move || -> Result<()> {
        if is_flood {
            stay_on(std::thread::available_parallelism()?.get() - 1)?;
        }
        loop {
            far.receive()?;
            if !is_flood {
                far.send()?;
            }
        }
    });
    let (start, before) = (Instant::now(), cpu_s()?);
    let mut packets = 0u32;
    while start.elapsed() < time {
        for _ in 0..AT_A_TIME {
            near.send()?;
            if !is_flood {
                near.receive()?;
            }
        }
        packets += AT_A_TIME;
    }
    let (passed, cpu_s) = (start.elapsed(), cpu_s()? - before);
    say(&format!("{} {}", f64::from(packets) / passed.as_secs_f64(), cpu_s * 1e6 / f64::from(packets)))
}

/// Keeps the calling thread on one of the CPUs.
fn stay_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).map_err(|_| anyhow!("no CPU {cpu}"))?;
    // Where that is refused, the figures have a wider spread.
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
    Ok(())
}

/// The CPU time of this process.
fn cpu_s() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
