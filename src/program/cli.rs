//! What the three command lines have in common.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

/// Takes `words` apart, the program's name first.
///
/// # Errors
/// When the program is done with that: help or version were asked for and are on stdout, with success; or the words are
/// wrong, which is on stderr, with the usage and exit code 2.
pub fn parse<Arguments: Parser>(words: impl IntoIterator<Item = OsString>) -> Result<Arguments, ExitCode> {
    Arguments::try_parse_from(words).map_err(|error| {
        let _ = error.print();
        if !error.use_stderr() {
            return ExitCode::SUCCESS;
        }
        // clap leaves it out where a value is missing or wrong.
        if !error.render().to_string().contains("Usage:") {
            let _ = writeln!(std::io::stderr(), "\n{}", Arguments::command().render_usage());
        }
        ExitCode::from(2)
    })
}
