use super::*;
use crate::config::{Diagnostics, notifications};

fn named(name: &str) -> Arc<Subject> {
    Arc::new(Subject::Named(name.as_bytes().into()))
}

/// Ticks of one second, with the rates in kB/s of each.
struct Run {
    notifier: Notifier,
    now: Instant,
}

impl Run {
    fn new(file: &str) -> Self {
        let mut notifier = Notifier::new(rules(file));
        let now = Instant::now();
        assert_eq!(notifier.tick(now, &[]), []);
        Self { notifier, now }
    }

    fn tick_after(&mut self, seconds: f64, rates: &[(&str, f64, f64)]) -> Vec<Notification> {
        self.now += Duration::from_secs_f64(seconds);
        let bytes = |kb_per_s: f64| (kb_per_s * BYTES_PER_KB as f64 * seconds).round() as u64;
        let row = |&(name, kb_in, kb_out): &(&str, f64, f64)| Row {
            subject: named(name),
            bytes_in: 0,
            bytes_out: 0,
            moved_in: bytes(kb_in),
            moved_out: bytes(kb_out),
            detail: None,
        };
        self.notifier.tick(self.now, &rates.iter().map(row).collect::<Vec<_>>())
    }

    /// The average of each notification; `None` for a recovery.
    fn tick(&mut self, rates: &[(&str, f64, f64)]) -> Vec<Option<f64>> {
        self.tick_after(1.0, rates).iter().map(|n| (!n.recovered).then_some(n.value_kb_per_s)).collect()
    }
}

#[test]
fn a_limit_is_exceeded_only_above_it_and_then_each_second() {
    let mut run = Run::new("[A]\nprocess_filter=web\nout_threshold=50\n");
    assert_eq!(run.tick(&[("web", 900.0, 50.0), ("other", 0.0, 900.0)]), []);
    assert_eq!(run.tick(&[("web", 0.0, 51.0)]), [Some(51.0)]);
    assert_eq!(run.tick(&[("web", 0.0, 52.0)]), [Some(52.0)]);
    assert_eq!(run.tick(&[("web", 0.0, 1.0)]), [None]);
    assert_eq!(run.tick(&[("web", 0.0, 1.0)]), []);
}

#[test]
fn time_before_an_application_appears_and_after_it_goes_counts_as_silence() {
    let mut run = Run::new("[A]\nprocess_filter=.\nin_threshold=10\ninterval=4\n");
    for _ in 0..3 {
        assert_eq!(run.tick(&[]), []);
    }
    assert_eq!(run.tick(&[("new", 40.0, 0.0)]), []);
    assert_eq!(run.tick(&[("new", 40.0, 0.0)]), [Some(20.0)]);
    // The application has gone; the bytes that it moved count until the interval has passed.
    assert_eq!(run.tick(&[]), [Some(20.0)]);
    assert_eq!(run.tick(&[]), [Some(20.0)]);
    assert_eq!(run.tick(&[]), [None]);
    assert_eq!(run.tick(&[]), []);
    assert!(run.notifier.applications.is_empty());
}

#[test]
fn a_run_shorter_than_the_interval_is_averaged_over_its_own_time() {
    let mut run = Run::new("[A]\nprocess_filter=.\nin_threshold=10\ninterval=4\n");
    assert_eq!(run.tick(&[("a", 40.0, 0.0)]), [Some(40.0)]);
    assert_eq!(run.tick(&[("a", 0.0, 0.0)]), [Some(20.0)]);
}

#[test]
fn an_average_over_the_whole_run_begins_with_the_program() {
    let mut run = Run::new("[A]\nprocess_filter=.\nin_threshold=10\ninterval=0\n");
    assert_eq!(run.tick(&[("a", 30.0, 0.0)]), [Some(30.0)]);
    assert_eq!(run.tick(&[("a", 0.0, 0.0)]), [Some(15.0)]);
    assert_eq!(run.tick(&[]), [None]);
    assert!(run.notifier.applications.is_empty());
}

#[test]
fn repetitions_wait_but_a_new_excess_does_not() {
    let mut run = Run::new("[A]\nprocess_filter=.\nin_threshold=10\nrepeat=3\n");
    let (over, under) = ([("a", 11.0, 0.0)], [("a", 0.0, 0.0)]);
    // A tick that is a few milliseconds early does not delay a repetition by a second.
    let times: Vec<usize> = (0..7).map(|_| run.tick_after(0.999, &over).len()).collect();
    assert_eq!(times, [1, 0, 0, 1, 0, 0, 1]);
    assert_eq!(run.tick(&under), [None]);
    assert_eq!(run.tick(&over), [Some(11.0)]);
}

/// The rules of a file.
fn rules(file: &str) -> Vec<Rule> {
    let mut diagnostics = Diagnostics::default();
    let rules = notifications("n.cfg", file.as_bytes(), &mut diagnostics);
    assert!(!diagnostics.has_errors(), "{diagnostics:?}");
    rules
}

#[test]
fn other_rules_keep_the_averages_of_those_that_stay() {
    let mut run =
        Run::new("[A]\nprocess_filter=a\nin_threshold=10\ninterval=2\n[B]\nprocess_filter=.\nin_threshold=10\n");
    assert_eq!(run.tick(&[("a", 30.0, 0.0)]), [Some(30.0), Some(30.0)]);
    run.notifier.replace(rules(
        "[C]\nprocess_filter=x|a\nin_threshold=20\ninterval=2\n[A]\nprocess_filter=a\nin_threshold=12\ninterval=2\n",
    ));
    // The new section knows nothing of the earlier traffic, and what the section that is gone has notified recovers.
    let found = run.tick_after(1.0, &[("a", 0.0, 0.0)]);
    let found: Vec<_> = found.iter().map(|n| (n.rule, n.recovered, n.value_kb_per_s)).collect();
    assert_eq!(found, [(1, true, 30.0), (0, false, 15.0)]);
    assert_eq!(run.notifier.rule(1).unwrap().section, "B");
    assert_eq!(run.tick(&[("a", 0.0, 0.0)]), [None]);
    assert!(run.notifier.rule(1).is_none());
    assert_eq!(run.tick(&[("a", 50.0, 0.0)]), [Some(25.0), Some(25.0)]);
}

#[test]
fn a_section_that_has_changed_does_not_notify_again() {
    let section = |changed: &str| format!("[A]\nprocess_filter=a\nin_threshold=10\nrepeat=1000\n{changed}\n");
    for (first, then) in [
        ("interval=4", "interval=2"),
        ("interval=2", "interval=4"),
        ("interval=2", "interval=0"),
        ("interval=0", "interval=3"),
        ("", "in_threshold=12"),
        ("", "process_filter=a|b"),
        ("", "notification_command=true"),
        ("", "out_threshold=5"),
    ] {
        let mut run = Run::new(&section(first));
        let over = [("a", 30.0, 0.0)];
        assert_eq!(run.tick(&over), [Some(30.0)], "{first}");
        run.tick(&over);
        run.tick(&over);
        run.notifier.replace(rules(&section(then)));
        for _ in 0..8 {
            assert_eq!(run.tick(&over), [], "{first}, {then}");
        }
        // One recovery, sooner or later.
        let found: Vec<_> = (0..40).flat_map(|_| run.tick(&[("a", 0.0, 0.0)])).collect();
        assert_eq!(found, [None], "{first}, {then}");
    }
}

#[test]
fn what_a_section_has_notified_recovers_when_it_no_longer_applies() {
    let section = |limit: &str| format!("[A]\nprocess_filter=a\n{limit}\n");
    for then in [
        "[B]\nprocess_filter=b\nin_threshold=99\n",
        "",
        "[A]\nprocess_filter=b\nin_threshold=10\n",
        &section("in_threshold=0\nout_threshold=3"),
    ] {
        let mut run = Run::new(&section("in_threshold=10"));
        assert_eq!(run.tick(&[("a", 30.0, 0.0)]), [Some(30.0)]);
        run.notifier.replace(rules(then));
        let found = run.tick_after(1.0, &[("a", 30.0, 0.0)]);
        let found: Vec<_> = found.iter().map(|n| (n.rule, n.recovered, n.threshold_kb_per_s, n.direction)).collect();
        assert_eq!(found, [(0, true, 10, Direction::In)], "{then}");
        assert_eq!(run.tick(&[("a", 30.0, 0.0)]), [], "{then}");
    }
}

#[test]
fn a_section_with_another_name_is_the_same_rule_and_equal_ones_are_not_mixed_up() {
    let section = |name: &str| format!("[{name}]\nprocess_filter=a\nin_threshold=10\nrepeat=1000\n");
    let mut run = Run::new(&(section("A") + &section("B")));
    let over = [("a", 30.0, 0.0)];
    assert_eq!(run.tick(&over).len(), 2);
    run.notifier.replace(rules(&(section("X") + &section("B"))));
    assert_eq!(run.tick(&over), []);
    // The same rule twice, which no file can have.
    let twice = || [rules(&section("X")), rules(&section("X"))].into_iter().flatten().collect();
    run.notifier.replace(twice());
    assert_eq!(run.tick(&over), []);
    run.notifier.replace(twice());
    assert_eq!(run.tick(&over), []);
    assert_eq!(run.tick(&[("a", 0.0, 0.0)]), [None, None]);
}

#[test]
fn a_notification_that_is_taken_back_comes_again() {
    let mut run = Run::new("[A]\nprocess_filter=a\nin_threshold=10\nrepeat=1000\n");
    let (over, under) = ([("a", 30.0, 0.0)], [("a", 1.0, 0.0)]);
    for _ in 0..2 {
        let found = run.tick_after(1.0, &over);
        assert_eq!((found.len(), found[0].recovered), (1, false));
        run.notifier.try_again(&found[0]);
    }
    assert_eq!(run.tick(&over), [Some(30.0)]);
    for _ in 0..2 {
        let found = run.tick_after(1.0, &under);
        assert_eq!((found.len(), found[0].recovered), (1, true));
        run.notifier.try_again(&found[0]);
    }
    assert_eq!(run.tick(&under), [None]);
    assert_eq!(run.tick(&under), []);
}

#[test]
fn names_that_take_too_long_to_match_are_matched_in_later_ticks() {
    let mut run = Run::new("[A]\nprocess_filter=(?=x)(?=(a+)+b)|(?=(a|aa)+c)|^b\nin_threshold=10\n");
    // Each of the long ones takes more than the time of a tick, or nearly so.
    let names: Vec<String> = (0..10).map(|n| format!("{}{n}", "a".repeat(4000))).collect();
    let mut rows: Vec<(&str, f64, f64)> = names.iter().map(|name| (name.as_str(), 1.0, 0.0)).collect();
    rows.push(("b", 30.0, 0.0));
    // The short one comes first.
    assert_eq!(run.tick(&rows), [Some(30.0)]);
    let mut notes = Vec::new();
    let waiting = |run: &Run| run.notifier.applications.values().filter(|it| !it.unmatched.is_empty()).count();
    while waiting(&run) > 0 {
        let before = waiting(&run);
        run.tick(&rows);
        assert!(waiting(&run) < before);
        notes.extend(run.notifier.notes());
    }
    let expected = "the patterns, most of all (?=x)(?=(a+)+b)|(?=(a|aa)+c)|^b, take too long: ";
    assert!(notes.iter().any(|note| note.starts_with(expected)), "{notes:?}");
}

#[test]
fn in_a_long_interval_the_command_lines_do_not_fill_the_memory() {
    let mut run = Run::new("[A]\nprocess_filter=.\nin_threshold=1\ninterval=86400\n");
    // This one exceeds its limit, and is not forgotten before its recovery is notified.
    assert_eq!(run.tick(&[("loud", 1e9, 0.0)]), [Some(1e9)]);
    for second in 0..20 {
        let names: Vec<String> = (0..GONE_KEPT / 10).map(|n| format!("{second}-{n}")).collect();
        let rates: Vec<(&str, f64, f64)> = names.iter().map(|name| (name.as_str(), 0.1, 0.0)).collect();
        assert_eq!(run.tick(&rates).len(), 1);
    }
    let known = run.notifier.applications.len();
    assert!((GONE_KEPT..GONE_KEPT + GONE_KEPT / 10 + 2).contains(&known), "{known}");
    assert!(run.notifier.applications.contains_key(&named("19-0")));
    assert!(!run.notifier.applications.contains_key(&named("0-0")));
}

#[test]
fn a_filter_that_exceeds_its_limit_is_reported_once() {
    let mut run = Run::new("[A]\nprocess_filter=(?!x)y\nin_threshold=10\n");
    run.tick(&[(&"y".repeat(1 << 20), 30.0, 0.0)]);
    let message = "the pattern (?!x)y takes too long on some command lines; they count as not matching";
    assert_eq!(run.notifier.notes(), [message]);
    assert_eq!(run.notifier.notes(), [""; 0]);
}

#[test]
fn a_late_tick_is_averaged_over_the_time_it_took() {
    let mut run = Run::new("[A]\nprocess_filter=.\nin_threshold=10\ninterval=2\n");
    assert_eq!(run.tick_after(10.0, &[("a", 9.0, 0.0)]), []);
    assert_eq!(run.tick_after(10.0, &[("a", 12.0, 0.0)])[0].value_kb_per_s, 12.0);
}

#[test]
fn both_directions_and_several_sections_are_notified_in_order() {
    let mut run = Run::new("[A]\nprocess_filter=.\nnotification_threshold=1\n[B]\nprocess_filter=a$\nin_threshold=2\n");
    let found = run.tick_after(1.0, &[("b", 5.0, 6.0), ("a", 3.0, 4.0)]);
    let found: Vec<_> = found.iter().map(|n| (&*n.application, n.rule, n.direction, n.value_kb_per_s)).collect();
    let (a, b) = (&*named("a"), &*named("b"));
    assert_eq!(
        found,
        [
            (a, 0, Direction::In, 3.0),
            (a, 0, Direction::Out, 4.0),
            (a, 1, Direction::In, 3.0),
            (b, 0, Direction::In, 5.0),
            (b, 0, Direction::Out, 6.0)
        ]
    );
}

#[test]
fn a_long_interval_takes_little_memory_and_stays_exact() {
    let mut run = Run::new("[A]\nprocess_filter=.\nin_threshold=1\ninterval=86400\nrepeat=86400\n");
    for second in 0..200_000_u32 {
        let busy = f64::from(second % 2 * 100);
        run.tick_after(1.0, &[("a", busy, 0.0)]);
    }
    let average = &run.notifier.applications.values().next().unwrap().rules[0].average;
    let [kb_per_s, _] =
        average.bytes_per_s(run.now - Duration::from_secs(200_000), run.now).map(|b| b / BYTES_PER_KB as f64);
    assert!((49.9..50.1).contains(&kb_per_s), "{kb_per_s}");
    assert!(average.pieces() <= 602, "{}", average.pieces());
}

const DAY: i64 = 86_400;

/// Quotas, and the bytes that each application moves in a tick.
struct QuotaRun {
    notifier: Notifier,
    quotas: Quotas,
    now: i64,
}

impl QuotaRun {
    fn new(file: &str) -> Self {
        let (notifier, mut quotas) = (Notifier::new(rules(file)), Quotas::new());
        notifier.set_quotas(&mut quotas);
        // 2026-11-26, a Thursday.
        Self { notifier, quotas, now: 1_795_651_200 }
    }

    /// What is told: the application, its bytes, and whether the quota is used up.
    fn tick(&mut self, moved: &[(&str, u64)]) -> Vec<(String, u64, bool)> {
        self.now += 1;
        let row = |&(name, moved_in): &(&str, u64)| Row {
            subject: named(name),
            bytes_in: 0,
            bytes_out: 0,
            moved_in,
            moved_out: 0,
            detail: None,
        };
        let rows: Vec<Row> = moved.iter().map(row).collect();
        let found = self.quotas.tick(self.now, &jiff::tz::TimeZone::UTC, &rows);
        found.iter().for_each(|quota| self.quotas.confirm(quota));
        found.iter().map(|it| (it.application.recorded_name(), it.used_bytes, it.exceeded)).collect()
    }

    /// The questions to the history.
    fn ask(&mut self) -> Vec<(u64, String, i64)> {
        let unasked = self.quotas.unasked();
        unasked.iter().for_each(|(number, ..)| self.quotas.asked(*number));
        unasked
    }

    fn remembered(&mut self) -> Vec<(String, String, u64)> {
        let mut all = Vec::new();
        self.quotas.remember(|told| {
            all.push((told.section.clone(), told.name.clone(), told.bytes));
            true
        });
        all
    }
}

const QUOTA: &str = "[Q]\nprocess_filter=web\nquota=100 B\nquota_period=day\n";

fn told(name: &str, bytes: u64, exceeded: bool) -> (String, u64, bool) {
    (name.to_owned(), bytes, exceeded)
}

#[test]
fn a_quota_is_told_at_the_warning_and_at_the_limit_once_each() {
    let mut run = QuotaRun::new(QUOTA);
    // Until the history has answered, nobody is told.
    assert_eq!(run.tick(&[("web", 1000)]), []);
    let today = run.now - run.now % DAY;
    assert_eq!(run.ask(), [(0, "Q".to_owned(), today)]);
    assert_eq!(run.ask(), []);
    assert_eq!(run.tick(&[("web", 10)]), []);
    run.quotas.load("Q", today, &[("web".to_owned(), 69), ("web 2".to_owned(), 5)].into(), &[]);
    assert_eq!(run.tick(&[("web", 0)]), []);
    assert_eq!(run.tick(&[("web", 1), ("mail", 500), ("web 2", 1)]), [told("web", 80, false)]);
    assert_eq!(run.tick(&[("web", 19)]), []);
    assert_eq!(run.tick(&[("web", 1)]), [told("web", 100, true)]);
    assert_eq!(run.tick(&[("web", 1), ("web 2", 94)]), [told("web 2", 100, true)]);
    assert_eq!(run.tick(&[("web", 1), ("web 2", 1)]), []);
    let all = [("web", 80), ("web", 100), ("web 2", 80), ("web 2", 100)];
    assert_eq!(run.remembered(), all.map(|(name, bytes)| ("Q".to_owned(), name.to_owned(), bytes)));
    assert_eq!(run.remembered(), []);
    // The next day begins with a question.
    run.now += DAY;
    assert_eq!(run.tick(&[("web", 100)]), []);
    assert_eq!(run.ask(), [(0, "Q".to_owned(), today + DAY)]);
    run.quotas.load("Q", today + DAY, &[("web".to_owned(), 100)].into(), &[]);
    assert_eq!(run.tick(&[("web", 0)]), [told("web", 100, true)]);
}

#[test]
fn what_was_told_before_a_restart_is_not_told_again_but_another_limit_is() {
    for (file, expected) in [
        (QUOTA.to_owned(), vec![]),
        (QUOTA.replace("100 B", "110 B"), vec![told("web", 120, true)]),
        (QUOTA.replace("100 B", "1 kB"), vec![]),
    ] {
        let mut run = QuotaRun::new(&file);
        run.tick(&[]);
        let [(_, section, since)] = &run.ask()[..] else { panic!("no question") };
        let before = [("web".to_owned(), 80), ("web".to_owned(), 100)];
        run.quotas.load(section, *since, &[("web".to_owned(), 119)].into(), &before);
        assert_eq!(run.tick(&[("web", 1)]), expected, "{file}");
    }
}

#[test]
fn a_quota_whose_section_has_another_name_goes_on_and_remembers() {
    let mut run = QuotaRun::new(QUOTA);
    run.tick(&[]);
    let since = run.ask()[0].2;
    run.quotas.load("Q", since, &HashMap::new(), &[]);
    assert_eq!(run.tick(&[("web", 90)]), [told("web", 90, false)]);
    run.remembered();
    run.notifier.replace(rules(&QUOTA.replace("[Q]", "[R]")));
    run.notifier.set_quotas(&mut run.quotas);
    assert_eq!(run.remembered(), [("R".to_owned(), "web".to_owned(), 80)]);
    assert_eq!((run.tick(&[("web", 1)]), run.ask().len()), (vec![], 0));
    // Another filter has to know what others have moved.
    run.notifier.replace(rules(&QUOTA.replace("=web", "=.")));
    run.notifier.set_quotas(&mut run.quotas);
    assert_eq!((run.tick(&[("web", 1)]), run.ask().len()), (vec![], 1));
}
