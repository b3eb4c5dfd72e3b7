//! The conntrack table, read from the output of real kernels and of conntrack(8), and from twins of these files with
//! mistakes made by hand.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Instant;

use crate::common::user::User;
use bwmon::kernel::conntrack::text::{self, Line};
use bwmon::kernel::conntrack::{Dump, Malformed, Table, ctnetlink};
use bwmon::kernel::flow::{Counters, Endpoint, Flow, Protocol, Tuple};
use bwmon::kernel::netlink::messages;
use nix::unistd::geteuid;
use proptest::prelude::*;

/// The captured texts; each has a twin `-broken`.
const TEXTS: [&str; 5] = [
    "nf_conntrack-6.18",
    "ip_conntrack-cut-from-nf_conntrack-6.18",
    "conntrack-1.4.7",
    "conntrack-1.4.7-id",
    "conntrack-1.4.7-no-counters",
];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The flows of a table whose text is in a file, and its malformed lines.
fn dump_file(path: PathBuf) -> (Vec<Flow>, Malformed) {
    let mut flows = Vec::new();
    let Dump { complete, malformed } = Table::File(path).dump(Instant::now(), &mut |flow| flows.push(*flow)).unwrap();
    assert!(complete);
    (flows, malformed)
}

fn dump_text(text: &[u8]) -> (Vec<Flow>, Malformed) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text).unwrap();
    dump_file(file.path().into())
}

fn dump(name: &str) -> Vec<Flow> {
    let (flows, malformed) = dump_file(fixture(&format!("{name}.txt")));
    assert_eq!(malformed, Malformed::default(), "{name}");
    flows
}

/// The flows of a recorded netlink dump.
fn dump_netlink(name: &str) -> Vec<Flow> {
    let datagrams = std::fs::read(fixture(name)).unwrap();
    messages(&datagrams).filter_map(|message| ctnetlink::parse(message.payload)).collect()
}

fn end(address: &str, port: u16) -> Endpoint {
    Endpoint::new(address.parse::<IpAddr>().unwrap(), port)
}

/// An open flow without address translation.
fn flow(protocol: Protocol, source: Endpoint, destination: Endpoint, original: u64, reply: u64) -> Flow {
    let tuple = Tuple { protocol, source, destination };
    Flow {
        original: tuple,
        reply: tuple.reversed(),
        zone: 0,
        id: 0,
        counters: Some(Counters { original, reply }),
        open: true,
        socket: None,
    }
}

/// The kernel's table when the fixtures were captured, without its ICMP entry.
fn captured() -> Vec<Flow> {
    use Protocol::{Tcp, Udp};
    let translated = flow(Tcp, end("10.79.0.1", 49040), end("10.9.9.9", 7001), 50536, 477);
    let reply = Tuple { source: end("10.79.0.2", 7001), ..translated.reply };
    vec![
        flow(Udp, end("10.79.0.1", 46173), end("10.79.0.2", 9), 29, 0),
        flow(Udp, end("fd79::1", 41688), end("fd79::2", 7005), 5240, 5240),
        flow(Tcp, end("fd79::1", 44094), end("fd79::2", 7001), 819, 100_656),
        flow(Tcp, end("10.79.0.1", 56728), end("10.79.0.2", 7001), 599, 100_528),
        Flow { reply, ..translated },
        flow(Udp, end("10.79.0.1", 49778), end("10.79.0.2", 7005), 5140, 5140),
        Flow { open: false, ..flow(Tcp, end("10.79.0.1", 56740), end("10.79.0.2", 7001), 389, 1268) },
    ]
}

fn without_ids(flows: &[Flow]) -> Vec<Flow> {
    flows.iter().map(|flow| Flow { id: 0, ..*flow }).collect()
}

#[test]
fn the_file_and_the_command_give_the_same_flows() {
    assert_eq!(dump("nf_conntrack-6.18"), captured());
    assert_eq!(dump("conntrack-1.4.7"), captured());
}

#[test]
fn ip_conntrack_is_read_without_columns_for_the_network_protocol() {
    let ipv4: Vec<Flow> = captured().into_iter().filter(|flow| flow.original.source.ipv4().is_some()).collect();
    assert_eq!(dump("ip_conntrack-cut-from-nf_conntrack-6.18"), ipv4);
}

#[test]
fn the_output_of_the_command_with_ids_is_read() {
    let flows = dump("conntrack-1.4.7-id");
    let ids = [451_710_458, 1_589_295_009, 3_890_090_195, 3_695_258_200, 2_300_555_785, 2_388_180_403, 2_869_716_658];
    assert_eq!(flows.iter().map(|flow| flow.id).collect::<Vec<_>>(), ids);
    assert_eq!(without_ids(&flows), captured());
}

#[test]
fn an_entry_without_byte_counts_has_no_counters() {
    let source = end("10.79.0.1", 56746);
    let expected = flow(Protocol::Tcp, source, end("10.79.0.2", 7001), 0, 0);
    assert_eq!(dump("conntrack-1.4.7-no-counters"), [Flow { counters: None, open: false, ..expected }]);
}

#[test]
#[cfg_attr(target_endian = "big", ignore = "the dump was recorded on a little-endian host")]
fn netlink_gives_the_same_flows_as_the_text_and_their_ids() {
    assert_eq!(dump_netlink("ctnetlink-6.18.bin"), dump("conntrack-1.4.7-id"));
}

#[test]
#[cfg_attr(target_endian = "big", ignore = "the dump was recorded on a little-endian host")]
fn a_netlink_message_with_wrong_lengths_loses_only_its_own_flow() {
    // An address of 14 bytes, a tuple longer than its message, and an end in the middle of the last flow.
    let mut expected = dump("conntrack-1.4.7-id");
    expected.remove(6);
    expected.remove(3);
    expected.remove(1);
    assert_eq!(dump_netlink("ctnetlink-6.18-broken.bin"), expected);
}

#[test]
fn malformed_lines_are_skipped_and_counted_and_the_first_is_quoted() {
    for name in TEXTS {
        let read = |name: &str| std::fs::read(fixture(&format!("{name}.txt"))).unwrap();
        let (good, twin) = (read(name), read(&format!("{name}-broken")));
        let good: Vec<&[u8]> = good.split(|byte| *byte == b'\n').collect();
        let (kept, broken): (Vec<&[u8]>, Vec<&[u8]>) = twin
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.trim_ascii().is_empty())
            .partition(|line| good.contains(line));
        assert!(!broken.is_empty(), "{name}");

        let (flows, malformed) = dump_file(fixture(&format!("{name}-broken.txt")));
        assert_eq!(flows, dump_text(&kept.join(&b'\n')).0, "{name}");
        assert_eq!(malformed.lines, broken.len() as u64, "{name}");
        let quoted = malformed.first.trim_end_matches("...").replace("\\xff", "\u{fffd}");
        assert!(quoted.len() > 20 && String::from_utf8_lossy(broken[0]).starts_with(&quoted), "{name}: {quoted}");
    }
}

#[test]
fn unknown_words_in_a_line_are_ignored() {
    let [plain, adorned] = [
        "tcp 6 9 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 packets=1 bytes=10 src=10.0.0.2 dst=10.0.0.1 \
         sport=2 dport=1 packets=1 bytes=20 use=1",
        "tcp 6 9 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 packets=1 bytes=10 src=10.0.0.2 dst=10.0.0.1 \
         sport=2 dport=1 packets=1 bytes=20 [ASSURED] [OFFLOAD] mark=0x1f secctx=system_u:object_r:unlabeled_t:s0 \
         delta-time=7 helper=ftp labels=a,b [start=Thu Nov 22 10:37:01 2012] use=1",
    ]
    .map(|line| text::parse(line.as_bytes()));
    assert!(matches!(plain, Line::Flow(_)));
    assert_eq!(adorned, plain);
}

#[test]
fn the_zone_of_a_flow_is_read() {
    let line = |zone: &str| {
        let line = format!(
            "udp 17 9 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 {zone}"
        );
        match text::parse(line.as_bytes()) {
            Line::Flow(flow) => flow.zone,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!([line(""), line("zone=7"), line("zone-orig=8 use=1")], [0, 7, 8]);
}

#[test]
fn lines_of_protocols_without_ports_are_not_malformed() {
    for line in [
        "",
        "  \n",
        "icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=0 src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=0 use=1",
        "ipv6     10 icmpv6   58 29 src=fd00::1 dst=fd00::2 type=128 code=0 id=1 src=fd00::2 dst=fd00::1 use=2",
        "unknown  2 580 src=10.0.0.1 dst=224.0.0.22 [UNREPLIED] src=224.0.0.22 dst=10.0.0.1 use=1",
        "ipv4     2 sctp     132 9 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 src=10.0.0.2 dst=10.0.0.1 use=2",
    ] {
        assert_eq!(text::parse(line.as_bytes()), Line::Other, "{line}");
    }
}

#[test]
fn a_line_without_end_is_read_in_pieces() {
    let (flows, malformed) = dump_text(&b"tcp 6 1 CLOSE src=".repeat(1000));
    assert_eq!(flows, []);
    assert!((1..20).contains(&malformed.lines), "{malformed:?}");
    assert!(malformed.first.len() <= 120);
}

#[test]
fn no_attribute_length_makes_the_netlink_parser_panic() {
    let datagrams = std::fs::read(fixture("ctnetlink-6.18.bin")).unwrap();
    for message in messages(&datagrams) {
        // The length of each attribute, also of a nested one, is at a multiple of four; so are many other fields.
        for (at, length) in
            (0..message.payload.len() / 4).flat_map(|word| (0..64).map(move |length| (word * 4, length)))
        {
            let mut payload = message.payload.to_vec();
            payload[at] = length;
            ctnetlink::parse(&payload);
        }
    }
}

#[test]
fn where_netlink_is_refused_nf_conntrack_is_read_or_else_ip_conntrack() {
    const NAME: &str = "conntrack::where_netlink_is_refused_nf_conntrack_is_read_or_else_ip_conntrack";
    if geteuid().is_root() {
        // Once more as an ordinary user, whom the kernel refuses.
        let output = User::new().command(&std::env::current_exe().unwrap()).args([NAME, "--exact"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let proc = tempfile::TempDir::new().unwrap();
    let net = proc.path().join("net");
    std::fs::create_dir(&net).unwrap();
    let refusal = format!("{:#}", Table::open(proc.path()).unwrap_err());
    let words = ["netlink: Operation not permitted", "nf_conntrack: ", "ip_conntrack: ", "conntrack -L"];
    assert!(words.iter().all(|word| refusal.contains(word)), "{refusal}");

    for name in ["ip_conntrack", "nf_conntrack"] {
        std::fs::write(net.join(name), "").unwrap();
        let table = Table::open(proc.path()).unwrap();
        assert!(matches!(&table, Table::File(path) if path == &net.join(name)), "{table:?}");
    }
}

/// Bytes that are nearly a table: captured lines or messages with some bytes changed, and cut somewhere.
fn nearly(original: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = original.len();
    let changes = proptest::collection::vec((0..length, any::<u8>()), 0..8);
    (changes, 0..=length).prop_map(move |(changes, end)| {
        let mut bytes = original.clone();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(end);
        bytes
    })
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic_or_hang(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        text::parse(&bytes);
        ctnetlink::parse(&bytes);
    }

    #[test]
    fn no_words_make_the_text_parser_panic_or_hang(line in "(ipv4 2 |ipv6 )?(tcp|udp|icmp)? ([a-z]{2,5}=?[0-9:.=-]{0,9} ?){0,12}") {
        text::parse(line.as_bytes());
    }

    #[test]
    fn nearly_right_text_makes_no_parser_panic_or_hang(
        text in nearly(std::fs::read(fixture("nf_conntrack-6.18.txt")).unwrap())
    ) {
        let (flows, malformed) = dump_text(&text);
        let lines = 1 + text.iter().filter(|byte| **byte == b'\n').count() as u64;
        prop_assert!(flows.len() as u64 + malformed.lines <= lines);
    }

    #[test]
    fn nearly_right_messages_make_no_parser_panic_or_hang(
        datagram in nearly(std::fs::read(fixture("ctnetlink-6.18.bin")).unwrap())
    ) {
        prop_assert!(messages(&datagram).filter_map(|message| ctnetlink::parse(message.payload)).count() <= 9);
    }
}
