//! What a key or a click does.

use super::columns::{at, columns};
use super::input::Input;
use super::model::{Model, Overlay, SortBy};
use crate::output::tty::Size;

/// What is left to do after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// To draw what has changed.
    Draw,
    /// To draw all: something else has written to the screen.
    Repaint,
    /// To turn the reports of the mouse on or off.
    ToggleMouse,
    /// To end the program.
    Quit,
}

/// Does what a key says on a screen of this size.
pub(super) fn press(model: &mut Model, input: Input, size: Size) -> Effect {
    match input {
        Input::Background { light } => model.look.light = light,
        Input::Ctrl('c') => return Effect::Quit,
        Input::Ctrl('l') => return Effect::Repaint,
        _ if model.overlay.take().is_some() => {}
        _ if model.is_editing => edit(model, input),
        _ => return command(model, input, size),
    }
    Effect::Draw
}

/// A key while the filter is typed.
fn edit(model: &mut Model, input: Input) {
    match input {
        Input::Char(c) => model.edit_filter(|filter| filter.push(c)),
        Input::Backspace => model.edit_filter(|filter| {
            let _ = filter.pop();
        }),
        Input::Ctrl('u') | Input::Escape => {
            model.edit_filter(String::clear);
            if input == Input::Escape {
                model.is_editing = false;
            }
        }
        Input::Enter => model.is_editing = false,
        Input::Up => model.move_selection(-1),
        Input::Down => model.move_selection(1),
        _ => {}
    }
}

fn command(model: &mut Model, input: Input, size: Size) -> Effect {
    let page = isize::try_from(model.list_lines(size).max(2) - 1).unwrap_or(isize::MAX);
    match input {
        Input::Char('q') => return Effect::Quit,
        Input::Char('m') => return Effect::ToggleMouse,
        Input::Char('?' | 'h') | Input::Function(1) => model.overlay = Some(Overlay::Help),
        Input::Char('n') => model.overlay = Some(Overlay::Notes),
        Input::Up | Input::Char('k') | Input::WheelUp => model.move_selection(-1),
        Input::Down | Input::Char('j') | Input::WheelDown => model.move_selection(1),
        Input::PageUp => model.move_selection(-page),
        Input::PageDown => model.move_selection(page),
        Input::Home => model.select(0),
        Input::End => model.select(usize::MAX),
        Input::Enter if model.opened.is_some() => model.opened = None,
        Input::Enter => model.open(),
        Input::Escape => model.back(),
        Input::Char('/') | Input::Function(4) => model.is_editing = true,
        Input::Char('I') => model.sort_by(SortBy::In),
        Input::Char('O') => model.sort_by(SortBy::Out),
        Input::Char('B') => model.sort_by(SortBy::Both),
        Input::Char('T') => model.sort_by(SortBy::Total),
        Input::Char('N') => model.sort_by(SortBy::Name),
        Input::Char('P') => model.sort_by(SortBy::Pid),
        Input::Char('U') => model.sort_by(SortBy::User),
        Input::Char('<') => model.sort_by(model.sort_by.neighbour(-1)),
        Input::Char('>') => model.sort_by(model.sort_by.neighbour(1)),
        Input::Char('r') => model.reverse(),
        Input::Char('g') => model.regroup(1),
        Input::Char('G') => model.regroup(-1),
        Input::Char('t') => model.swap_totals(),
        Input::Char('u') => model.unit = model.unit.next(),
        Input::Char('w') => model.toggle_unowned(),
        Input::Char(' ') => model.pause(),
        Input::Click { column, line } => click(model, column.into(), line.into(), size),
        _ => {}
    }
    Effect::Draw
}

fn click(model: &mut Model, column: usize, line: usize, size: Size) {
    let head = model.head_line(size);
    if model.opened.is_some() && !model.opened_is_below(size) {
        return;
    }
    if line == head {
        if let Some(by) = at(&columns(model, size.columns), column).and_then(|column| column.sorts()) {
            if model.sort_by == by { model.reverse() } else { model.sort_by(by) }
        }
    } else if line > head && line - head - 1 < model.list_lines(size) {
        model.click(model.first + line - head - 1);
    }
}
