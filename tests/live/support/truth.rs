//! Bytes as nftables counts them.

use std::collections::BTreeMap;

use super::netns::Namespace;

/// Counters of nftables, which take IP packets as conntrack does.
pub struct Truth<'a> {
    namespace: &'a Namespace,
}

/// Sent by the client, and by the server.
pub type Bytes = (u64, u64);

impl<'a> Truth<'a> {
    /// Nothing is counted yet.
    pub fn new(namespace: &'a Namespace) -> Self {
        // The packets as they are when conntrack takes them. Over loopback each comes by in both places.
        namespace.shell(
            "nft 'add table inet truth; \
             add chain inet truth sent { type filter hook output priority -300; }; \
             add chain inet truth received { type filter hook prerouting priority -300; }; \
             add rule inet truth received iifname lo accept'",
        );
        Self { namespace }
    }

    /// Counts from now on as `name` what a server that listens on `port` is sent and sends.
    pub fn count(&self, name: &str, protocol: &str, port: u16) {
        for (counter, end) in [("to", "dport"), ("from", "sport")] {
            let rule = format!("{protocol} {end} {port} counter name {counter}_{name}");
            self.namespace.shell(&format!(
                "nft 'add counter inet truth {counter}_{name}; \
                 add rule inet truth sent {rule}; add rule inet truth received {rule}'"
            ));
        }
    }

    /// The bytes so far.
    pub fn bytes(&self) -> BTreeMap<String, Bytes> {
        let mut bytes: BTreeMap<String, Bytes> = BTreeMap::new();
        let text = self.namespace.shell("nft list counters table inet truth");
        let mut words = text.split_ascii_whitespace();
        while words.any(|word| word == "counter") {
            let (end, name) = words.next().unwrap().split_once('_').unwrap();
            let count = words.by_ref().skip_while(|word| *word != "bytes").nth(1).unwrap().parse().unwrap();
            let (to, from) = bytes.entry(name.into()).or_default();
            *(if end == "to" { to } else { from }) = count;
        }
        bytes
    }
}
