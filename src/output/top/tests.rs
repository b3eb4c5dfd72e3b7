use std::time::Duration;

use proptest::prelude::*;
use ratatui_core::backend::TestBackend;
use ratatui_core::style::Modifier;
use ratatui_core::terminal::Terminal;

use super::input::Input;
use super::keys::{Effect, press};
use super::look::Look;
use super::model::Model;
use super::{Property, Rows, samples};
use crate::output::golden;
use crate::output::text::local_time;
use crate::output::tty::Size;
use crate::output::{Direction, Frame, Moment, Notification};
use crate::traffic::subject::Subject;
use crate::workload::names::Names;

const SMALL: Size = Size { columns: 80, lines: 24 };
const BIG: Size = Size { columns: 200, lines: 50 };

/// A view of a host with so many processes after a minute.
fn model(rows: usize) -> Model {
    model_after(rows, 70)
}

fn model_after(rows: usize, seconds: u64) -> Model {
    let program = |subject: &Subject, _: &mut Names| {
        let label = subject.label();
        let program = label.split(|byte| *byte == b' ').next().unwrap_or_default();
        Some(program.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec())
    };
    let look = Look { colours: true, light: false, utf8: true };
    let groupings: Vec<(&'static str, Property)> = vec![("COMMAND", |_, _| None), ("PROGRAM", program)];
    let rows_of = Rows { of: ("process", "processes"), groupings, first: 0 };
    let start = samples::frame(rows, 0).at;
    let mut model = Model::new("atlas".to_owned(), look, rows_of, start);
    for second in 0..=seconds {
        model.take(at(samples::frame_with_unowned(rows, second), second, start));
    }
    model
}

fn at(mut frame: Frame, second: u64, start: Moment) -> Frame {
    frame.at.monotonic = start.monotonic + Duration::from_secs(second);
    frame
}

/// Another second passes.
fn pass(model: &mut Model, rows: usize, second: u64) {
    let start = model.frame.at;
    model.take(at(samples::frame_with_unowned(rows, second), 1, start));
}

fn screen(model: &mut Model, size: Size) -> String {
    let backend = TestBackend::new(size.columns as u16, size.lines as u16);
    let mut terminal = Terminal::new(backend).unwrap();
    terminal.draw(|frame| super::draw::draw(model, frame.buffer_mut())).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |line: &[ratatui_core::buffer::Cell]| line.iter().map(|cell| cell.symbol()).collect::<String>();
    let lines: Vec<String> = buffer.content().chunks(size.columns).map(line).collect();
    let clock = local_time(model.shown_at().wall_clock).split_off("2012-11-22 ".len());
    lines.iter().map(|line| line.trim_end().replace(&clock, "23:31:00") + "\n").collect()
}

fn type_in(model: &mut Model, keys: &str) {
    for key in keys.chars() {
        press(model, Input::Char(key), SMALL);
    }
}

/// The names of the rows on the screen.
fn names(model: &mut Model) -> Vec<String> {
    let lines = model.list_lines(SMALL);
    model.scroll(lines);
    model.items_from(model.first).take(lines).map(|item| String::from_utf8_lossy(&item.name).into_owned()).collect()
}

#[test]
fn a_busy_host_looks_as_documented() {
    for size in [SMALL, BIG] {
        let text = screen(&mut model(300), size);
        golden::assert_golden(&format!("../../docs/screens/top-{}x{}.txt", size.columns, size.lines), &text);
    }
}

#[test]
fn an_opened_row_looks_as_documented() {
    for size in [SMALL, BIG] {
        let mut model = model(300);
        press(&mut model, Input::Enter, size);
        let text = screen(&mut model, size);
        golden::assert_golden(&format!("../../docs/screens/top-opened-{}x{}.txt", size.columns, size.lines), &text);
    }
}

#[test]
fn help_filter_groups_and_pause_look_as_documented() {
    let mut all = String::new();
    let mut model = model(300);
    type_in(&mut model, "g");
    all += &screen(&mut model, SMALL);
    type_in(&mut model, "G/POST");
    all += &screen(&mut model, SMALL);
    press(&mut model, Input::Escape, SMALL);
    type_in(&mut model, "tu ");
    all += &screen(&mut model, SMALL);
    type_in(&mut model, "?");
    all += &screen(&mut model, SMALL);
    golden::assert_golden("../../docs/screens/top-keys-80x24.txt", &all);
}

#[test]
fn rows_are_sorted_by_what_a_key_says() {
    let mut model = model(40);
    assert!(names(&mut model)[0].starts_with("/usr/sbin/nginx"));
    type_in(&mut model, "I");
    assert!(names(&mut model)[0].starts_with("/usr/bin/rclone"));
    type_in(&mut model, "N");
    assert!(names(&mut model).is_sorted());
    type_in(&mut model, "r");
    assert!(names(&mut model).iter().rev().is_sorted());
    type_in(&mut model, "r<");
    assert_eq!(model.sort_by, super::model::SortBy::User);
}

#[test]
fn a_click_on_a_head_sorts_and_on_a_row_selects_and_opens() {
    let mut model = model(40);
    press(&mut model, Input::Click { column: 3, line: 1 }, SMALL);
    assert!(names(&mut model)[0].starts_with("/usr/bin/rclone"));
    press(&mut model, Input::Click { column: 30, line: 3 }, SMALL);
    let selected = model.selected.clone();
    assert!(selected.is_some() && model.opened.is_none());
    press(&mut model, Input::Click { column: 30, line: 3 }, SMALL);
    assert_eq!(model.opened.as_ref().map(|item| &item.key), selected.as_ref());
}

#[test]
fn the_selection_is_a_process_and_the_order_stands_after_a_key() {
    let mut model = model(40);
    press(&mut model, Input::Down, SMALL);
    press(&mut model, Input::Down, SMALL);
    let (before, selected) = (names(&mut model), model.selected.clone());
    for second in 0..9 {
        // The small ones are the big ones now.
        let mut frame = samples::frame_with_unowned(40, 71 + second);
        for (row, rank) in frame.rows.iter_mut().zip(0..) {
            (row.moved_in, row.moved_out) = (rank * 1_000_000, 0);
        }
        let start = model.frame.at;
        model.take(at(frame, 1, start));
        assert_eq!(names(&mut model), before);
    }
    for second in 0..4 {
        let mut frame = samples::frame_with_unowned(40, 80 + second);
        for (row, rank) in frame.rows.iter_mut().zip(0..) {
            (row.moved_in, row.moved_out) = (rank * 1_000_000, 0);
        }
        let start = model.frame.at;
        model.take(at(frame, 1, start));
    }
    assert_ne!(names(&mut model), before);
    assert_eq!(model.selected, selected);
}

#[test]
fn a_pause_stands_while_counting_goes_on() {
    let mut model = model(40);
    type_in(&mut model, " ");
    let before = screen(&mut model, SMALL);
    assert!(before.lines().next().unwrap().contains("PAUSED at 23:31:00"), "{before}");
    for second in 71..90 {
        pass(&mut model, 40, second);
    }
    assert_eq!(screen(&mut model, SMALL), before);
    type_in(&mut model, " ");
    assert_ne!(screen(&mut model, SMALL), before);
}

#[test]
fn a_message_takes_a_line_until_it_is_dismissed() {
    let mut model = model(40);
    model.add_notes(vec!["one\u{1b}[2J".to_owned()]);
    assert_eq!(screen(&mut model, SMALL).lines().nth(1), Some(r" ! one\u{1b}[2J"));
    press(&mut model, Input::Escape, SMALL);
    assert!(screen(&mut model, SMALL).lines().nth(1).unwrap().contains("IN/s"));
    type_in(&mut model, "n");
    assert!(screen(&mut model, SMALL).contains(r"one\u{1b}[2J"));
}

#[test]
fn who_exceeds_a_threshold_is_marked_without_colours_too() {
    let mut model = model(3);
    model.look = Look { colours: false, light: false, utf8: false };
    let mut frame = samples::frame(3, 71);
    frame.notifications.push(Notification {
        rule: 0,
        application: std::sync::Arc::clone(&frame.rows[0].subject),
        direction: Direction::Out,
        threshold_kb_per_s: 1,
        value_kb_per_s: 2.0,
        recovered: false,
        command_failure: None,
    });
    let start = model.frame.at;
    model.take(at(frame, 1, start));
    model.has_new_note = false;
    let text = screen(&mut model, SMALL);
    assert!(text.lines().nth(2).unwrap().starts_with('!'), "{text}");
    assert!(text.is_ascii(), "{text}");
    let backend = TestBackend::new(80, 24);
    let mut terminal = Terminal::new(backend).unwrap();
    terminal.draw(|frame| super::draw::draw(&mut model, frame.buffer_mut())).unwrap();
    let cells = terminal.backend().buffer().content();
    assert!(
        cells
            .iter()
            .all(|cell| cell.fg == ratatui_core::style::Color::Reset && cell.bg == ratatui_core::style::Color::Reset)
    );
    assert!(cells[2 * 80].modifier.contains(Modifier::BOLD));
}

#[test]
fn only_what_has_changed_is_sent() {
    let mut model = model(300);
    let mut drawn = ratatui_core::buffer::Buffer::default();
    let all = super::changes(&mut model, &mut drawn, false).len();
    assert_eq!(super::changes(&mut model, &mut drawn, true), b"");
    pass(&mut model, 300, 71);
    let second = super::changes(&mut model, &mut drawn, true).len();
    println!("{all} bytes for a screen, {second} for the second after it");
    assert!(second < all, "{second} of {all}");
}

proptest! {
    #[test]
    fn no_key_on_no_screen_makes_it_panic(
        keys in proptest::collection::vec("[a-zA-Z/<> ?\u{1}-\u{8}]", 0..40), columns in 1usize..220, lines in 1usize..70, rows in 0usize..30,
    ) {
        let size = Size { columns, lines };
        let mut model = model_after(rows, 4);
        for key in keys {
            let input = match key.chars().next().unwrap() {
                '\u{1}' => Input::Up,
                '\u{2}' => Input::Down,
                '\u{3}' => Input::PageDown,
                '\u{4}' => Input::End,
                '\u{5}' => Input::Enter,
                '\u{6}' => Input::Escape,
                '\u{7}' => Input::Click { column: columns as u16 / 2, line: lines as u16 / 2 },
                '\u{8}' => Input::Backspace,
                key => Input::Char(key),
            };
            let effect = press(&mut model, input, size);
            prop_assert!(effect != Effect::Quit || input == Input::Char('q'));
            screen(&mut model, size);
        }
    }
}
