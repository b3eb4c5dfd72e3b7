use bwmon::kernel::bpf::packet_counters::PacketCounters;
fn main() -> anyhow::Result<()> {
    let mut c = PacketCounters::attach()?;
    eprintln!("missing {:?}", c.missing());
    for _ in 0..std::env::args().nth(1).map_or(5, |n| n.parse().unwrap()) {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let t = std::time::Instant::now();
        let mut rows = Vec::new();
        let o = c.read(|b| rows.push(b))?;
        eprintln!("{:?} overflow {o:?} {} rows", t.elapsed(), rows.len());
        for r in rows.iter().take(20) {
            println!("{r:?}");
        }
    }
    Ok(())
}
