//! Which processes are shown: `--include` and `--exclude`, or `include` and `exclude` of a monitor's section.

use crate::python2::pattern::Pattern;

/// What is included and not excluded.
#[derive(Debug, Default)]
pub struct Filter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Filter {
    /// A filter; without a pattern to include, everything is included.
    pub fn new(include: Vec<Pattern>, exclude: Vec<Pattern>) -> Self {
        Filter { include, exclude }
    }

    /// Whether a process with this command line is shown: any of the patterns to include matches, and none of those
    /// to exclude.
    ///
    /// As for [`Pattern::matches_command_line`], a blank ends the command line.
    pub fn admits(&self, command_line: &[u8]) -> bool {
        let matches = |pattern: &Pattern| pattern.matches_command_line(command_line);
        (self.include.is_empty() || self.include.iter().any(matches)) && !self.exclude.iter().any(matches)
    }

    /// The patterns that found some command line too much work, see [`Pattern::exceeded_limit`].
    pub fn exceeded_limit(&self) -> impl Iterator<Item = &Pattern> {
        let all = self.include.iter().chain(&self.exclude);
        all.filter(|pattern| pattern.exceeded_limit())
    }
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Selection {
    /// The command lines.
    pub filter: Filter,
    /// Whether connections with two [local](crate::kernel::flow::Endpoint::is_local) ends are left out.
    pub ignore_local: bool,
}

/// Whether any of `selections` takes this command line, and whether its connections with two local ends, too.
pub(super) fn taken(selections: &[Selection], name: &[u8]) -> (bool, bool) {
    let selected = || selections.iter().filter(|selection| selection.filter.admits(name));
    (selected().next().is_some(), selected().any(|selection| !selection.ignore_local))
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
    fn without_patterns_everything_is_admitted() {
        assert!(filter(&[], &[]).admits(b"curl "));
        assert!(filter(&[], &[]).admits(b""));
    }

    #[test]
    fn any_include_is_enough() {
        let filter = filter(&["^ssh", "curl"], &[]);
        assert!(filter.admits(b"ssh host "));
        assert!(filter.admits(b"/usr/bin/curl "));
        assert!(!filter.admits(b"wget "));
    }

    #[test]
    fn exclude_wins() {
        let filter = filter(&["ssh"], &["root@", "-N"]);
        assert!(filter.admits(b"ssh host "));
        assert!(!filter.admits(b"ssh root@host "));
        assert!(!filter.admits(b"ssh -N host "));
    }

    #[test]
    fn an_empty_pattern_matches_everything() {
        assert!(filter(&[""], &[]).admits(b"curl "));
        assert!(!filter(&[], &[""]).admits(b"curl "));
    }

    #[test]
    fn the_last_blank_counts_and_does_not() {
        for include in ["curl$", "curl $"] {
            assert!(filter(&[include], &[]).admits(b"curl "), "{include}");
        }
        assert!(!filter(&[], &["curl$"]).admits(b"curl "));
    }

    #[test]
    fn names_the_pattern_that_exceeded_its_limit() {
        let filter = filter(&[], &["ssh", "(?!x)y"]);
        assert!(filter.admits(&[b'y'; 1 << 20]));
        let patterns: Vec<String> = filter.exceeded_limit().map(Pattern::to_string).collect();
        assert_eq!(patterns, ["(?!x)y"]);
    }
}
