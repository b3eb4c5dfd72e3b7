//! The manual pages and the completions in packaging/, made from the command lines of the programs.
//!
//! What a page has beyond the options is the end of the long help, whose sections it takes over:
//!
//! ```text
//! Signals:                      a section
//!   SIGINT, SIGTERM  End.       an entry and its text; further lines of the text are indented by more than two blanks
//!   sudo runmonitor             an entry whose text stands below it
//!       What every process has received
//!   Ignored signals stay so.    an entry without a text is a paragraph
//! ```

use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::golden::assert_file;

/// The other pages of bwmon.
const PAGES: [&str; 4] = ["runmonitor(1)", "runpipe(1)", "runaggregator(1)", "bwmon.cfg(5)"];

/// When the pages last changed in what they say.
const DATE: &str = "2026-11-26";

/// The columns of a terminal on which the end of the long help is not wrapped.
const COLUMNS: usize = 80;

/// Compares the manual page and the completions of a program with the files in packaging/.
pub fn assert_pages(mut command: Command) {
    let name = command.get_name().to_owned();
    assert_file(&packaging("man", &format!("{name}.1")), &manual(command.clone()));
    for (shell, file) in
        [(Shell::Bash, name.clone()), (Shell::Zsh, format!("_{name}")), (Shell::Fish, format!("{name}.fish"))]
    {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, &name, &mut script);
        let mut script = String::from_utf8(script).unwrap();
        if shell == Shell::Bash {
            assert!(script.contains(PREVIOUS));
            script = script.replace(PREVIOUS, &[PREVIOUS, PREVIOUS_OF_VALUE].concat());
        }
        assert_file(&packaging("completions", &shell.to_string()).join(file), &script);
    }
}

/// How a script for bash finds the word before.
const PREVIOUS: &str = "    prev=\"$3\"\n";
/// `--source=p` is three words for bash.
const PREVIOUS_OF_VALUE: &str = "    [[ $prev == = ]] && prev=\"${COMP_WORDS[COMP_CWORD-2]}\"\n";

fn packaging(folder: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(folder).join(file)
}

fn manual(command: Command) -> String {
    let name = command.get_name().to_owned();
    let more = command.get_after_long_help().unwrap().to_string();
    let version = command.get_version().unwrap().to_owned();
    let page = Man::new(command).manual("bwmon").date(DATE).source(format!("bwmon {version}"));
    let mut text = Vec::new();
    page.render_title(&mut text).unwrap();
    page.render_name_section(&mut text).unwrap();
    page.render_synopsis_section(&mut text).unwrap();
    page.render_description_section(&mut text).unwrap();
    page.render_options_section(&mut text).unwrap();
    let mut roff = sections(&more);
    let others: Vec<&str> = PAGES.into_iter().filter(|page| !page.starts_with(&name)).collect();
    roff.control("SH", ["SEE ALSO"]).text([roman(others.join(", "))]);
    roff.to_writer(&mut text).unwrap();
    // The synopsis ends with a blank.
    String::from_utf8(text).unwrap().replace(" \n", "\n")
}

/// The sections of the end of a long help.
fn sections(help: &str) -> Roff {
    let mut roff = Roff::new();
    let mut lines = help.lines().filter(|line| !line.is_empty()).peekable();
    while let Some(line) = lines.next() {
        assert!(line.chars().count() <= COLUMNS, "{line} does not fit on a terminal of {COLUMNS} columns");
        let Some(entry) = line.strip_prefix("  ") else {
            roff.control("SH", [line.trim_end_matches(':').to_uppercase().as_str()]);
            continue;
        };
        let (entry, mut text) =
            entry.split_once("  ").map_or((entry, String::new()), |(entry, text)| (entry, text.trim().to_owned()));
        while let Some(further) = lines.next_if(|line| line.starts_with("   ")) {
            text = format!("{text} {}", further.trim());
        }
        match text.trim() {
            "" => roff.control("PP", []).text([roman(entry)]),
            text => roff.control("TP", []).text([bold(entry)]).text([roman(text)]),
        };
    }
    roff
}
