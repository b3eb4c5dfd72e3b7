//! The pipe over IPv6, which a host may lack.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use bwmon::pipe::{Pipe, PipeSettings};

use crate::common::program::DEADLINE;
use crate::support::harness::{Outcome, needs_ipv6};

/// A pipe from a free port of 127.0.0.1 to a listener.
fn settings(listener: &TcpListener) -> PipeSettings {
    let target = listener.local_addr().unwrap();
    PipeSettings {
        bind: Some(Ipv4Addr::LOCALHOST.into()),
        ..PipeSettings::new(0, target.ip().to_string(), target.port())
    }
}

/// Sends something to `address`, and expects it at the listener.
fn assert_leads_to(listener: &TcpListener, address: SocketAddr) {
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"hello").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut received = [0; 5];
    server.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"hello");
}

pub fn by_default_a_pipe_listens_on_the_ipv6_addresses_too() -> Outcome {
    needs_ipv6()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let pipe = Pipe::bind(PipeSettings { bind: None, ..settings(&listener) }).unwrap();
    assert_leads_to(&listener, (Ipv6Addr::LOCALHOST, pipe.local_address().port()).into());
    Ok(())
}

pub fn an_ipv6_target_may_be_in_brackets() -> Outcome {
    needs_ipv6()?;
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    for host in ["::1", "[::1]"] {
        let pipe = Pipe::bind(PipeSettings { target_host: host.into(), ..settings(&listener) }).unwrap();
        assert_leads_to(&listener, pipe.local_address());
    }
    Ok(())
}
