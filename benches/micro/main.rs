//! The cost of single steps, in CPU time: `cargo bench --bench micro`, or only some of it with `-- NAME...`.
//!
//! | name | what it measures |
//! |---|---|
//! | `parsers` | what reads input from outside: the conntrack table, cgroups, /proc, configuration files, patterns |
//! | `owners` | from a socket to its process, over the sockets of this process |
//! | `ticks` | a tick of the ledger with 1,000, 20,000 and 100,000 flows, made up |
//! | `pipe` | what a pipe takes for each GiB, between two threads of this process |
//!
//! Nothing here needs root. `cargo bench --bench monitor -- scale` measures whole programs over real connections.

mod measure;
mod owners;
mod parsers;
mod pipe;
mod ticks;

fn main() {
    // Cargo adds --bench.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let parts: [(&str, fn()); 4] =
        [("parsers", parsers::run), ("owners", owners::run), ("ticks", ticks::run), ("pipe", pipe::run)];
    if let Some(unknown) = wanted.iter().find(|word| parts.iter().all(|(name, _)| name != word)) {
        eprintln!("there is no {unknown}: parsers, owners, ticks, pipe");
        std::process::exit(2);
    }
    for (name, run) in parts {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            run();
            println!();
        }
    }
}
