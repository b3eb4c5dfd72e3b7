//! Which traffic counts: `--include`, `--exclude` and `--ignore-local`, or the same keys of a monitor's section.

use crate::python2::pattern::{MatchBudget, Pattern};

/// Selects command lines that are included and not excluded.
#[derive(Debug, Default)]
pub struct Filter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Filter {
    /// Without a pattern to include, every command line is included.
    pub fn new(include: Vec<Pattern>, exclude: Vec<Pattern>) -> Self {
        Filter { include, exclude }
    }

    /// Whether any of the patterns to include matches the command line, and none of those to exclude.
    ///
    /// As for [`Pattern::matches_command_line`], the command line ends in a blank.
    pub fn matches(&self, command_line: &[u8]) -> bool {
        let match_any =
            |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches_command_line(command_line));
        (self.include.is_empty() || match_any(&self.include)) && !match_any(&self.exclude)
    }

    /// Like [`matches`](Self::matches); `None` if there is no time to find out in this tick.
    fn matches_in_time(&self, command_line: &[u8], budget: &mut MatchBudget) -> Option<bool> {
        let mut match_any = |patterns: &[Pattern]| {
            for pattern in patterns {
                if budget.matches(pattern, command_line)? {
                    return Some(true);
                }
            }
            Some(false)
        };
        Some((self.include.is_empty() || match_any(&self.include)?) && !match_any(&self.exclude)?)
    }

    /// The patterns that exceeded their limit of work on some command line, see [`Pattern::exceeded_limit`].
    pub fn patterns_over_limit(&self) -> impl Iterator<Item = &Pattern> {
        let all = self.include.iter().chain(&self.exclude);
        all.filter(|pattern| pattern.exceeded_limit())
    }
}

/// One choice of traffic that counts.
#[derive(Debug, Default)]
pub struct Selection {
    /// Which command lines.
    pub filter: Filter,
    /// Whether connections of this host with itself are left out: over loopback, or between its own addresses.
    pub ignore_local: bool,
}

/// Whether any of `selections` selects this command line, and whether also its connections with two local ends; `None` if
/// there is no time to find out in this tick.
pub(super) fn selects(selections: &[Selection], name: &[u8], matching: &mut MatchBudget) -> Option<(bool, bool)> {
    matching.decide(|budget| {
        let (mut counts, mut counts_local) = (false, false);
        for selection in selections {
            // One that selects local connections, too, decides everything.
            if !counts_local
                && (!counts || !selection.ignore_local)
                && selection.filter.matches_in_time(name, budget)?
            {
                (counts, counts_local) = (true, !selection.ignore_local);
            }
        }
        Some((counts, counts_local))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(include: &[&str], exclude: &[&str]) -> Filter {
        let compile = |patterns: &[&str]| {
            let compiled = patterns.iter().map(|text| Pattern::new(text.as_bytes()));
            compiled.collect::<Result<_, _>>().unwrap()
        };
        Filter::new(compile(include), compile(exclude))
    }

    #[test]
    fn without_patterns_every_command_line_matches() {
        assert!(filter(&[], &[]).matches(b"curl "));
        assert!(filter(&[], &[]).matches(b""));
    }

    #[test]
    fn any_include_is_enough() {
        let filter = filter(&["^ssh", "curl"], &[]);
        assert!(filter.matches(b"ssh host "));
        assert!(filter.matches(b"/usr/bin/curl "));
        assert!(!filter.matches(b"wget "));
    }

    #[test]
    fn exclude_wins() {
        let filter = filter(&["ssh"], &["root@", "-N"]);
        assert!(filter.matches(b"ssh host "));
        assert!(!filter.matches(b"ssh root@host "));
        assert!(!filter.matches(b"ssh -N host "));
    }

    #[test]
    fn an_empty_pattern_matches_everything() {
        assert!(filter(&[""], &[]).matches(b"curl "));
        assert!(!filter(&[], &[""]).matches(b"curl "));
    }

    #[test]
    fn a_pattern_is_tried_with_and_without_the_last_blank() {
        for include in ["curl$", "curl $"] {
            assert!(filter(&[include], &[]).matches(b"curl "), "{include}");
        }
        assert!(!filter(&[], &["curl$"]).matches(b"curl "));
    }

    #[test]
    fn the_pattern_that_exceeded_its_limit_is_named() {
        let filter = filter(&[], &["ssh", "(?!x)y"]);
        assert!(filter.matches(&[b'y'; 1 << 20]));
        let patterns: Vec<String> = filter.patterns_over_limit().map(Pattern::to_string).collect();
        assert_eq!(patterns, ["(?!x)y"]);
    }
}
