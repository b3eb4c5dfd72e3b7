//! Cells as bytes for the terminal: CUP and SGR of ECMA-48, 8.3, which xterm and its kin have in common.

use ratatui_core::buffer::Cell;
use ratatui_core::style::{Color, Modifier};

/// The attributes that `Look` uses, with their parameters of SGR.
const ATTRIBUTES: [(Modifier, u8); 4] =
    [(Modifier::BOLD, 1), (Modifier::DIM, 2), (Modifier::UNDERLINED, 4), (Modifier::REVERSED, 7)];

/// The colours of characters, whose parameters of SGR are 30 and so on.
const COLOURS: [Color; 8] =
    [Color::Black, Color::Red, Color::Green, Color::Yellow, Color::Blue, Color::Magenta, Color::Cyan, Color::Gray];

/// The bytes that draw `cells`, each with its column and its line from 0 on, and leave the terminal without a style.
pub(super) fn encode(cells: &[(u16, u16, &Cell)]) -> Vec<u8> {
    let mut text = String::new();
    let (mut next, mut style) = (None, (Color::Reset, Modifier::empty()));
    for &(column, line, cell) in cells {
        if next != Some((column, line)) {
            text += &format!("\x1b[{};{}H", line + 1, column + 1);
        }
        // Behind a wide character, the next one differs from this.
        next = Some((column + 1, line));
        if style != (cell.fg, cell.modifier) {
            style = (cell.fg, cell.modifier);
            text += &rendition(cell);
        }
        text += cell.symbol();
    }
    (text + "\x1b[0m").into_bytes()
}

/// The sequence after which the terminal has the style of this cell and no other.
fn rendition(cell: &Cell) -> String {
    let attributes = ATTRIBUTES.into_iter().filter(|&(attribute, _)| cell.modifier.contains(attribute));
    let colour = (30..).zip(COLOURS).filter(|&(_, colour)| colour == cell.fg);
    let parameters = attributes.map(|(_, parameter)| parameter).chain(colour.map(|(parameter, _)| parameter));
    format!("\x1b[0{}m", parameters.map(|parameter| format!(";{parameter}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use ratatui_core::buffer::Buffer;
    use ratatui_core::layout::Rect;
    use ratatui_core::style::Style;

    use super::*;

    #[test]
    fn a_run_of_cells_has_one_position_and_one_style() {
        let before = Buffer::empty(Rect::new(0, 0, 20, 2));
        let mut after = before.clone();
        after.set_string(0, 0, "ab", Style::new());
        after.set_string(2, 0, "cd", Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD | Modifier::DIM));
        after.set_string(5, 0, "e", Style::new().add_modifier(Modifier::REVERSED));
        after.set_string(0, 1, "漢字", Style::new());
        let text = String::from_utf8(encode(&before.diff(&after))).unwrap();
        assert_eq!(text, "\x1b[1;1Hab\x1b[0;1;2;36mcd\x1b[1;6H\x1b[0;7me\x1b[2;1H\x1b[0m漢\x1b[2;3H字\x1b[0m");
    }
}
