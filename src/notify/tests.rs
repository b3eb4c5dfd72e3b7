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
        let mut diagnostics = Diagnostics::default();
        let mut notifier = Notifier::new(notifications("n.cfg", file.as_bytes(), &mut diagnostics));
        assert!(!diagnostics.has_errors(), "{diagnostics:?}");
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

#[test]
fn other_rules_keep_the_averages_of_those_that_stay() {
    let mut run =
        Run::new("[A]\nprocess_filter=a\nin_threshold=10\ninterval=2\n[B]\nprocess_filter=.\nin_threshold=10\n");
    assert_eq!(run.tick(&[("a", 30.0, 0.0)]), [Some(30.0), Some(30.0)]);
    let mut diagnostics = Diagnostics::default();
    let text =
        b"[C]\nprocess_filter=.\nin_threshold=20\ninterval=2\n[A]\nprocess_filter=a\nin_threshold=12\ninterval=2\n";
    run.notifier.replace(notifications("n.cfg", text, &mut diagnostics));
    // The new section knows nothing of the earlier traffic, and the section that is gone sends no recovery.
    assert_eq!(run.tick(&[("a", 0.0, 0.0)]), [Some(15.0)]);
    assert_eq!(run.tick(&[("a", 0.0, 0.0)]), [None]);
    assert_eq!(run.tick(&[("a", 50.0, 0.0)]), [Some(25.0), Some(25.0)]);
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
