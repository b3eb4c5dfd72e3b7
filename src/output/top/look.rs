//! How things look: colours by their role, and the characters that the terminal has.
//!
//! A role uses the terminal's own 16 colours, never the background, and none of those that are a background on some terminal
//! (white, bright colours). Nothing is told by colour alone.

use ratatui_core::style::{Color, Modifier, Style};

/// What the terminal can show, and what its user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    pub colours: bool,
    pub light: bool,
    pub utf8: bool,
}

impl Look {
    /// By the environment: NO_COLOR (no-color.org), COLORFGBG (rxvt), the locale.
    pub fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_lowercase();
        let background = set("COLORFGBG").and_then(|value| value.rsplit(';').next().map(str::to_owned));
        Self {
            colours: set("NO_COLOR").is_none(),
            light: background.is_some_and(|colour| colour == "7" || colour == "15"),
            utf8: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    fn colour(self, dark: Color, light: Color) -> Style {
        let style = Style::new();
        if self.colours { style.fg(if self.light { light } else { dark }) } else { style }
    }

    /// Sums, and rows with much of the traffic.
    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// Labels, hints, quiet rows.
    pub fn weak(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// The heads of columns.
    pub fn head(self, is_sorted: bool) -> Style {
        Style::new().add_modifier(Modifier::UNDERLINED | if is_sorted { Modifier::BOLD } else { Modifier::DIM })
    }

    /// The selected row, and that the view is paused.
    pub fn reversed(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub fn diagram(self) -> Style {
        self.colour(Color::Cyan, Color::Blue)
    }

    /// What exceeds a threshold.
    pub fn alarm(self) -> Style {
        self.colour(Color::Red, Color::Red).add_modifier(Modifier::BOLD)
    }

    /// A message.
    pub fn warning(self) -> Style {
        self.colour(Color::Yellow, Color::Magenta)
    }
}

#[cfg(test)]
mod tests {
    use super::Look;

    #[test]
    fn the_environment_tells_what_the_terminal_shows() {
        let look = |variables: &'static [(&str, &str)]| {
            let variable =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            Look::of_environment(variable)
        };
        assert_eq!(look(&[("LANG", "C.UTF-8")]), Look { colours: true, light: false, utf8: true });
        assert_eq!(
            look(&[("LC_ALL", "C"), ("LANG", "C.UTF-8"), ("NO_COLOR", "1"), ("COLORFGBG", "0;15")]),
            Look { colours: false, light: true, utf8: false }
        );
        assert!(look(&[("NO_COLOR", "")]).colours);
        assert!(!look(&[("COLORFGBG", "15;default;0")]).light);
    }
}
