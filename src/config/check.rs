//! Whether a configuration can be used: warnings alone do not prevent that, one error does.

use std::error::Error;
use std::fmt;

use super::{Diagnostic, Diagnostics};

/// Why a configuration is not used: a first line with the number of errors, then one line for each error and each
/// warning, sorted by file and line.
#[derive(Debug)]
pub struct InvalidConfiguration(Vec<Diagnostic>);

impl fmt::Display for InvalidConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.iter().filter(|diagnostic| !diagnostic.is_warning).count() {
            1 => f.write_str("a mistake in the configuration:")?,
            count => write!(f, "{count} mistakes in the configuration:")?,
        }
        self.0.iter().try_for_each(|diagnostic| write!(f, "\n{diagnostic}"))
    }
}

impl Error for InvalidConfiguration {}

/// The warnings, if there is no error.
///
/// # Errors
/// All diagnostics, the warnings included, if at least one of them is an error.
pub(crate) fn check(diagnostics: Diagnostics) -> Result<Vec<Diagnostic>, InvalidConfiguration> {
    let is_invalid = diagnostics.has_errors();
    let sorted = diagnostics.sorted();
    if is_invalid { Err(InvalidConfiguration(sorted)) } else { Ok(sorted) }
}
