//! From a socket to its process, with the kernel's part in it.

use std::hint::black_box;
use std::net::{TcpListener, TcpStream};

use bwmon::attribution::per_tick::TickLookup;
use bwmon::attribution::{Answer, Query};
use bwmon::kernel::flow::{Endpoint, Protocol, Tuple};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::measure::print_each;

pub fn run() {
    println!("| owners | ns for each, median | lowest | highest |");
    println!("|---|---|---|---|");
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of descriptors");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("more descriptors");
    for connections in [500, 5_000] {
        if most < 3 * connections as u64 {
            println!("| {} sockets: not with {most} descriptors | - | - | - |", 2 * connections);
            continue;
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let to = listener.local_addr().expect("its address");
        let connect = |_| (TcpStream::connect(to).expect("a connection"), listener.accept().expect("its other end").0);
        let held: Vec<(TcpStream, TcpStream)> = (0..connections).map(connect).collect();
        let ends = held.iter().flat_map(|(client, server)| [client, server]);
        let queries: Vec<Query> = ends.map(query).collect();
        let mut found = 0;
        print_each(&format!("{} sockets, by tuple", queries.len()), queries.len(), || {
            let mut lookup = TickLookup::of_this_host(None);
            lookup.begin_tick();
            let answers = black_box(lookup.resolve(queries.iter().copied(), Vec::new()));
            let own = |answer: &&Answer| matches!(answer, Answer::Held { pid, .. } if *pid == std::process::id());
            found = answers.iter().filter(own).count();
        });
        if found < queries.len() {
            println!("\nOnly {found} were found in the time that a tick has for it: the machine is busy.\n");
        }
    }
}

fn query(socket: &TcpStream) -> Query {
    let [source, destination] = [socket.local_addr(), socket.peer_addr()].map(|address| {
        let address = address.expect("an address");
        Endpoint::new(address.ip(), address.port())
    });
    Query::Tuple(Tuple { protocol: Protocol::Tcp, source, destination })
}
