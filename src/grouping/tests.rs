use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::key::program;
use super::*;
use crate::config::{Diagnostics, applications};

fn named(name: &str) -> Arc<Subject> {
    Arc::new(Subject::Named(name.as_bytes().into()))
}

/// A source whose totals the test sets.
#[derive(Clone, Default)]
struct Counted(Rc<RefCell<Vec<(&'static str, u64)>>>);

impl Source for Counted {
    fn read(&mut self, _now: Instant) -> Result<Vec<Reading>> {
        let reading =
            |&(name, bytes): &(&str, u64)| Reading { subject: named(name), bytes_in: bytes, bytes_out: 2 * bytes };
        Ok(self.0.borrow().iter().map(reading).collect())
    }
}

fn grouping(file: &str, auto_group: bool) -> Grouping {
    let mut diagnostics = Diagnostics::default();
    let applications = applications("apps.cfg", file.as_bytes(), &mut diagnostics);
    assert!(!diagnostics.has_errors(), "{diagnostics:?}");
    Grouping { applications, group_by: if auto_group { GroupBy::Program } else { GroupBy::Command } }
}

fn aggregator(grouping: Grouping) -> (Aggregator<Counted>, Counted) {
    let counted = Counted::default();
    (Aggregator::new(grouping, vec![counted.clone()]), counted)
}

/// The incoming totals after one more reading.
fn totals(aggregator: &mut Aggregator<Counted>) -> BTreeMap<String, u64> {
    let readings = aggregator.read(Instant::now()).unwrap();
    let total = |reading: &Reading| {
        assert_eq!(reading.bytes_out, 2 * reading.bytes_in);
        (String::from_utf8_lossy(&reading.subject.label()).into_owned(), reading.bytes_in)
    };
    readings.iter().map(total).collect()
}

fn map<const N: usize>(totals: [(&str, u64); N]) -> BTreeMap<String, u64> {
    totals.map(|(name, total)| (name.to_owned(), total)).into()
}

#[test]
fn programs_have_the_names_that_python_gave_them() {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../../tests/vectors/shlex.json")).unwrap();
    let latin1 = |text: &str| -> Vec<u8> { text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect() };
    for vector in vectors["vectors"].as_array().unwrap() {
        let input = vector["input"].as_str().unwrap();
        // For these, Python found no name or an empty one.
        let expected = match (input, vector["auto_group_name"].as_str()) {
            (r#""""# | "''" | "" | "   ", _) => input,
            (_, Some(name)) => name,
            (r"a\", None) => r"a\",
            (r#""a\"#, None) => r#""a\"#,
            ("\"unterminated", None) => "\"unterminated",
            ("it's", None) => "it's",
            ("sh -c echo 'it", None) => "sh",
            _ => panic!("no expected name for this vector: {vector}"),
        };
        assert_eq!(program(&latin1(input)), latin1(expected), "{input:?}");
    }
    assert_eq!(program(b"  it's here"), b"it's");
    assert_eq!(program(b"/usr/bin/ x"), b"/usr/bin/ x");
}

#[test]
fn an_application_keeps_the_totals_of_processes_that_have_ended() {
    let (mut aggregator, counted) = aggregator(grouping("[Web]\na=wget\nb=curl\n[All]\na=.\n", false));
    counted.0.replace(vec![("wget x", 100), ("curl y", 20), ("ssh z", 3)]);
    assert_eq!(totals(&mut aggregator), map([("Web", 120), ("All", 3)]));
    counted.0.replace(vec![("wget x", 150), ("ssh z", 3)]);
    assert_eq!(totals(&mut aggregator), map([("Web", 170), ("All", 3)]));
    // The second curl began from zero; the source forgot the total that fell in between.
    counted.0.replace(vec![("wget x", 10), ("curl y", 5)]);
    assert_eq!(totals(&mut aggregator), map([("Web", 185), ("All", 3)]));
    counted.0.take();
    assert_eq!(totals(&mut aggregator), map([("Web", 185), ("All", 3)]));
}

#[test]
fn several_sources_add_up() {
    let (first, second) = (Counted::default(), Counted::default());
    first.0.replace(vec![("a", 1)]);
    second.0.replace(vec![("a", 10), ("b", 5)]);
    let mut aggregator = Aggregator::new(Grouping::default(), vec![first, second.clone()]);
    assert_eq!(totals(&mut aggregator), map([("a", 11), ("b", 5)]));
    second.0.replace(vec![("a", 20)]);
    assert_eq!(totals(&mut aggregator), map([("a", 21)]));
}

#[test]
fn a_command_line_by_itself_is_forgotten_with_its_source() {
    let (mut aggregator, counted) = aggregator(Grouping::default());
    counted.0.replace(vec![("wget x", 100)]);
    assert_eq!(totals(&mut aggregator), map([("wget x", 100)]));
    counted.0.take();
    assert_eq!(totals(&mut aggregator), map([]));
}

#[test]
fn an_application_and_a_command_line_with_its_name_are_one_group_that_stays() {
    let (mut aggregator, counted) = aggregator(grouping("[web]\na=wget\n", false));
    counted.0.replace(vec![("web", 1), ("wget x", 100)]);
    assert_eq!(totals(&mut aggregator), map([("web", 101)]));
    counted.0.take();
    assert_eq!(totals(&mut aggregator), map([("web", 101)]));
}

#[test]
fn new_rules_keep_the_totals_of_applications_that_stay() {
    let (mut aggregator, counted) = aggregator(grouping("[Web]\na=wget\nb=curl\n[Old]\na=ssh\n[Gone]\na=dd\n", false));
    counted.0.replace(vec![("wget x", 100), ("curl y", 20), ("ssh z", 3), ("dd", 9)]);
    totals(&mut aggregator);
    counted.0.borrow_mut().pop();
    totals(&mut aggregator);
    aggregator.regroup(grouping("[Web]\na=wget\n[Gone]\na=other\n", true));
    assert_eq!(totals(&mut aggregator), map([("Web", 120), ("curl", 0), ("ssh", 0), ("Gone", 9)]));
    counted.0.replace(vec![("wget x", 101), ("curl y", 22), ("ssh z", 6)]);
    assert_eq!(totals(&mut aggregator), map([("Web", 121), ("curl", 2), ("ssh", 3), ("Gone", 9)]));
}

#[test]
fn a_pattern_that_exceeds_its_limit_is_reported_once() {
    let (mut aggregator, counted) = aggregator(grouping("[Web]\na=(?!x)y\n", false));
    let name = "y".repeat(1 << 20).leak();
    counted.0.replace(vec![(name, 100)]);
    totals(&mut aggregator);
    let message = "the pattern (?!x)y takes too long on some command lines; they count as not matching";
    assert_eq!(aggregator.notes(), [message]);
    assert_eq!(aggregator.notes(), [""; 0]);
}

#[test]
fn command_lines_that_take_too_long_to_match_wait_with_their_bytes() {
    let (mut aggregator, counted) = aggregator(grouping("[Slow]\na=(?=x)(?=(a+)+b)|(?=(a|aa)+c)\n[All]\na=.\n", false));
    let names: Vec<&'static str> = (0..8).map(|n| &*format!("{}{n}", "a".repeat(4000)).leak()).collect();
    let mut readings: Vec<(&'static str, u64)> = names.iter().map(|name| (*name, 100)).collect();
    readings.push(("b", 1));
    counted.0.replace(readings.clone());
    let mut sum = totals(&mut aggregator)["All"];
    // The short one comes first. Each of the others takes about the time of a tick.
    assert_eq!(sum % 100, 1);
    let mut notes = aggregator.notes();
    while sum < 801 {
        let before = sum;
        sum = totals(&mut aggregator)["All"];
        assert!(sum > before);
        notes.extend(aggregator.notes());
    }
    assert_eq!(totals(&mut aggregator), map([("All", 801)]));
    let expected = "the patterns, most of all (?=x)(?=(a+)+b)|(?=(a|aa)+c), take too long: ";
    assert!(notes.iter().any(|note| note.starts_with(expected)), "{notes:?}");
}

#[test]
fn sources_come_and_go_and_the_bytes_that_they_counted_stay() {
    let (first, second) = (Counted::default(), Counted::default());
    first.0.replace(vec![("wget", 100)]);
    second.0.replace(vec![("wget", 10)]);
    let mut aggregator = Aggregator::new(grouping("[Web]\na=wget\n", false), vec![first.clone()]);
    assert_eq!(totals(&mut aggregator), map([("Web", 100)]));
    aggregator.add(second);
    aggregator.retain(|source| !Rc::ptr_eq(&source.0, &first.0));
    assert_eq!(aggregator.sources().count(), 1);
    assert_eq!(totals(&mut aggregator), map([("Web", 110)]));
}

/// A host that starts twelve different command lines a second, each of which its source has for a minute.
struct Busy(u64);

impl Source for Busy {
    fn read(&mut self, _now: Instant) -> Result<Vec<Reading>> {
        self.0 += 12;
        let reading = |n| Reading { subject: named(&format!("/bin/p{n} --{n}")), bytes_in: 1, bytes_out: 1 };
        Ok((self.0.saturating_sub(12 * 60)..self.0).map(reading).collect())
    }
}

#[test]
fn ever_new_command_lines_do_not_fill_the_memory() {
    // 400 seconds are as good as a day: they reach all limits.
    let ticks = 400;
    for (rules, most, total) in [
        (grouping("[All]\na=.\n", false), 1, Some(12 * ticks)),
        (grouping("", true), SILENT_PROGRAMS_KEPT + 12 * 60, None),
        (grouping("", false), 12 * 60, None),
    ] {
        let mut aggregator = Aggregator::new(rules, vec![Busy(0)]);
        let mut readings = Vec::new();
        for _ in 0..ticks {
            readings = aggregator.read(Instant::now()).unwrap();
            assert!(readings.len() <= most && aggregator.members[0].before.len() <= 12 * 60);
        }
        assert!(total.is_none_or(|total| readings[0].bytes_in == total));
    }
}

/// A source of one subject.
struct One(Arc<Subject>);

impl Source for One {
    fn read(&mut self, _now: Instant) -> Result<Vec<Reading>> {
        Ok(vec![Reading { subject: Arc::clone(&self.0), bytes_in: 7, bytes_out: 0 }])
    }

    fn last_notes(&mut self) -> Vec<String> {
        vec!["what was held back".to_owned()]
    }
}

#[test]
fn the_group_of_a_user_has_all_of_the_users_processes() {
    let command_line = Box::from(&b"curl "[..]);
    let uid = Some(1_234_567);
    let one = Subject::Processes { command_line, uid, cgroup: None, executable: None, nameless: false };
    let sources = [one, Subject::Others { user: uid }].map(|subject| One(Arc::new(subject)));
    let grouping = Grouping { applications: Vec::new(), group_by: GroupBy::User };
    let mut aggregator = Aggregator::new(grouping, sources.into());
    let readings = aggregator.read(Instant::now()).unwrap();
    let shown: Vec<_> = readings.iter().map(|reading| (reading.subject.label(), reading.bytes_in)).collect();
    assert_eq!(shown, [(b"1234567"[..].into(), 14)]);
}

#[test]
fn what_its_sources_held_back_is_told_at_the_end() {
    let mut aggregator = Aggregator::new(Grouping::default(), vec![One(named("a"))]);
    assert_eq!(aggregator.last_notes(), ["what was held back"]);
}
