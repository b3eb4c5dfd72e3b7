//! Parsing of the three command lines.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

/// Parses `words`, of which the first is the program's name.
///
/// # Errors
/// The exit code with which the program ends at once: success after it has printed the help or the version on stdout, 2
/// after it has printed on stderr what is wrong with the words, and the usage.
pub fn parse<Arguments: Parser>(words: impl IntoIterator<Item = OsString>) -> Result<Arguments, ExitCode> {
    Arguments::try_parse_from(words).map_err(|error| {
        let _ = error.print();
        if !error.use_stderr() {
            return ExitCode::SUCCESS;
        }
        // clap leaves the usage out if a value is missing or wrong.
        if !error.render().to_string().contains("Usage:") {
            let _ = writeln!(std::io::stderr(), "\n{}", Arguments::command().render_usage());
        }
        ExitCode::from(2)
    })
}
