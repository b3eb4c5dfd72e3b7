//! The true bytes of a flow, counted by nftables.

use std::collections::BTreeMap;

use super::netns::Namespace;

/// Counters of nftables, which count IP packets as conntrack does.
pub struct Truth<'a> {
    namespace: &'a Namespace,
}

/// The bytes that the client has sent, and those that the server has sent.
pub type Bytes = (u64, u64);

impl<'a> Truth<'a> {
    /// Without counters.
    pub fn new(namespace: &'a Namespace) -> Self {
        // The packets as conntrack sees them. Over loopback each passes both hooks.
        namespace.shell(
            "nft 'add table inet truth; \
             add chain inet truth sent { type filter hook output priority -300; }; \
             add chain inet truth received { type filter hook prerouting priority -300; }; \
             add rule inet truth received iifname lo accept'",
        );
        Self { namespace }
    }

    /// Counts as `name`, from now on, the bytes to and from a server that listens on `port`.
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
