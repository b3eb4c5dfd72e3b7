//! From the sums of a minute to the rows of the file: whose bytes they are, by name, and at which remote address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::store::{Minute, Who};
use crate::traffic::detail::Remotes;
use crate::traffic::rates::moved;
use crate::traffic::source::VisitRemotes;
use crate::traffic::subject::Subject;

/// The most groups of a minute that the file tells apart; the smallest are added up.
const MOST_GROUPS: usize = 1000;
/// The most remote addresses of a group in a minute that the file tells apart.
const MOST_REMOTES: usize = 64;

/// What moved in a minute, or in the part of it since the last batch.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) at: i64,
    pub(super) number: u64,
    pub(super) rows: HashMap<(Arc<Subject>, Option<u32>), [u64; 2]>,
    /// What each subject has exchanged with each remote end in all; `None` where that is not told apart.
    pub(super) remotes: Option<Vec<Snapshot>>,
}

/// The remote ends of a subject.
#[derive(Debug)]
pub(super) struct Snapshot {
    subject: Arc<Subject>,
    group: Arc<Subject>,
    remotes: Remotes,
}

impl Batch {
    pub(super) fn new(at: i64) -> Self {
        Self { at, number: 0, rows: HashMap::new(), remotes: None }
    }
}

/// All remote ends as they are now. The thread finds out what has moved since the last batch.
pub(super) fn snapshot(visit: &dyn Fn(&mut VisitRemotes<'_>)) -> Vec<Snapshot> {
    let mut all = Vec::new();
    visit(&mut |subject, group, remotes| {
        all.push(Snapshot { subject: Arc::clone(subject), group: Arc::clone(group), remotes: remotes.clone() });
    });
    all
}

/// Makes rows of batches, one after the other.
#[derive(Debug, Default)]
pub(super) struct Settling {
    /// The bytes that each subject had exchanged with each address at the last batch.
    before: HashMap<Arc<Subject>, HashMap<IpAddr, [u64; 2]>>,
}

impl Settling {
    pub(super) fn settle(&mut self, batch: Batch) -> Minute {
        let mut groups: HashMap<Who, [u64; 2]> = HashMap::new();
        for ((group, uid), bytes) in batch.rows {
            add(groups.entry(who(&group, uid)).or_default(), bytes);
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_unstable_by(|(a, x), (b, y)| total(*y).cmp(&total(*x)).then_with(|| a.cmp(b)));
        if groups.len() > MOST_GROUPS {
            let mut others = [0, 0];
            groups.drain(MOST_GROUPS - 1..).for_each(|(_, bytes)| add(&mut others, bytes));
            groups.push((Who::others(), others));
        }
        let mut ends = batch.remotes.map_or_else(HashMap::new, |remotes| self.moved_since(remotes));
        let rows = groups.into_iter().flat_map(|(who, bytes)| {
            let ends = ends.remove(&who).unwrap_or_default();
            split(who, bytes, ends)
        });
        Minute { at: batch.at, batch: batch.number, rows: rows.collect() }
    }

    /// What each group has exchanged with each address since the last batch.
    fn moved_since(&mut self, snapshots: Vec<Snapshot>) -> HashMap<Who, HashMap<IpAddr, [u64; 2]>> {
        let mut ends: HashMap<Who, HashMap<IpAddr, [u64; 2]>> = HashMap::new();
        let before = std::mem::take(&mut self.before);
        for Snapshot { subject, group, remotes } in snapshots {
            let mut totals: HashMap<IpAddr, [u64; 2]> = HashMap::new();
            for (remote, bytes) in remotes.iter() {
                add(totals.entry(remote.address).or_default(), bytes.into());
            }
            let of_subject = before.get(&subject);
            let of_group = ends.entry(who(&group, subject.uid())).or_default();
            for (address, now) in &totals {
                let before = of_subject.and_then(|of_subject| of_subject.get(address)).copied().unwrap_or_default();
                add(of_group.entry(*address).or_default(), [moved(now[0], before[0]), moved(now[1], before[1])]);
            }
            self.before.insert(subject, totals);
        }
        ends
    }
}

/// A row for each of the biggest remote ends, and one for what is left: together, they are the bytes of the group.
fn split(who: Who, bytes: [u64; 2], ends: HashMap<IpAddr, [u64; 2]>) -> Vec<(Who, [u64; 2])> {
    let mut ends: Vec<_> = ends.into_iter().filter(|(_, bytes)| *bytes != [0, 0]).collect();
    ends.sort_unstable_by_key(|&(address, bytes)| (std::cmp::Reverse(total(bytes)), address));
    let mut left = bytes;
    let mut rows = Vec::new();
    for (address, bytes) in ends.into_iter().take(MOST_REMOTES) {
        let bytes = [bytes[0].min(left[0]), bytes[1].min(left[1])];
        left = [left[0] - bytes[0], left[1] - bytes[1]];
        if bytes != [0, 0] {
            rows.push((Who { remote: Some(address.to_string()), ..who.clone() }, bytes));
        }
    }
    if left != [0, 0] {
        rows.push((who, left));
    }
    rows
}

fn who(group: &Subject, uid: Option<u32>) -> Who {
    let kind = match group {
        Subject::Processes { .. } => "process",
        Subject::Named(_) => "group",
        Subject::Others { .. } => "others",
        Subject::Unowned(_) => "unowned",
    };
    Who { kind, name: group.recorded_name(), uid, remote: None }
}

fn add(sum: &mut [u64; 2], bytes: [u64; 2]) {
    *sum = [sum[0].saturating_add(bytes[0]), sum[1].saturating_add(bytes[1])];
}

fn total(bytes: [u64; 2]) -> u64 {
    bytes[0].saturating_add(bytes[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::detail::Remote;

    fn named(name: &str) -> Arc<Subject> {
        Arc::new(Subject::Named(name.as_bytes().into()))
    }

    fn batch(rows: &[(&str, [u64; 2])]) -> Batch {
        let rows = rows.iter().map(|(name, bytes)| ((named(name), None), *bytes)).collect();
        Batch { rows, ..Batch::new(60) }
    }

    fn snapshot_of(name: &str, ends: &[(u8, [u64; 2])]) -> Vec<Snapshot> {
        let mut remotes = Remotes::default();
        for (port, &(last, bytes)) in (1..).zip(ends) {
            let remote = Remote { address: [10, 0, 0, last].into(), port, protocol: 6 };
            remotes.add(Some(remote), bytes.into());
        }
        vec![Snapshot { subject: named(name), group: named(name), remotes }]
    }

    fn rows(minute: &Minute) -> Vec<(&str, Option<&str>, [u64; 2])> {
        minute.rows.iter().map(|(who, bytes)| (&*who.name, who.remote.as_deref(), *bytes)).collect()
    }

    #[test]
    fn remote_ends_and_the_rest_are_the_bytes_of_the_group() {
        let mut settling = Settling::default();
        let baseline = Batch { remotes: Some(snapshot_of("web", &[(1, [500, 0]), (1, [500, 0])])), ..batch(&[]) };
        assert_eq!(rows(&settling.settle(baseline)), []);
        let ends = snapshot_of("web", &[(1, [520, 1]), (1, [510, 0]), (2, [9, 90])]);
        let next = Batch { remotes: Some(ends), ..batch(&[("web", [50, 100])]) };
        assert_eq!(
            rows(&settling.settle(next)),
            [("web", Some("10.0.0.2"), [9, 90]), ("web", Some("10.0.0.1"), [30, 1]), ("web", None, [11, 9])]
        );
        // More at the ends than the group has moved: the sums are those of the group.
        let ends = snapshot_of("web", &[(1, [9999, 9999])]);
        let next = Batch { remotes: Some(ends), ..batch(&[("web", [5, 0])]) };
        assert_eq!(rows(&settling.settle(next)), [("web", Some("10.0.0.1"), [5, 0])]);
    }

    #[test]
    fn more_names_than_the_file_takes_lose_no_byte() {
        let names: Vec<String> = (0..3000).map(|n| format!("name {n}")).collect();
        let all: Vec<(&str, [u64; 2])> = (1..).zip(&names).map(|(n, name)| (name.as_str(), [n, 1])).collect();
        let minute = Settling::default().settle(batch(&all));
        assert_eq!(minute.rows.len(), MOST_GROUPS);
        assert_eq!(minute.rows[0].0.name, "name 2999");
        let sum = minute.rows.iter().fold([0, 0], |sum, (_, bytes)| [sum[0] + bytes[0], sum[1] + bytes[1]]);
        assert_eq!(sum, [3000 * 3001 / 2, 3000]);
    }
}
