//! Whether a configuration can be used: warnings alone do not prevent that, one error does.

use std::error::Error;
use std::fmt;

use super::{Diagnostic, Diagnostics};

/// Why a configuration is not used: a first line with the number of mistakes, then one line for each error and each
/// warning, sorted by file and line.
#[derive(Debug)]
pub struct InvalidConfiguration {
    diagnostics: Vec<Diagnostic>,
    /// The number of errors, and of warnings, that `diagnostics` lacks.
    more: (usize, usize),
    /// Whether a warning is a mistake, too.
    strict: bool,
}

impl fmt::Display for InvalidConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (errors, warnings) = self.more;
        let is_mistake = |diagnostic: &&Diagnostic| self.strict || !diagnostic.is_warning;
        let mistakes = self.diagnostics.iter().filter(is_mistake).count();
        match mistakes + errors + if self.strict { warnings } else { 0 } {
            1 => f.write_str("a mistake in the configuration:")?,
            count => write!(f, "{count} mistakes in the configuration:")?,
        }
        self.diagnostics.iter().try_for_each(|diagnostic| write!(f, "\n{diagnostic}"))?;
        if errors + warnings > 0 {
            write!(f, "\nand {} more", errors + warnings)?;
        }
        Ok(())
    }
}

impl Error for InvalidConfiguration {}

/// The warnings, if there is no error; with `strict`, if there is no warning either.
///
/// # Errors
/// All diagnostics, the warnings included, if at least one of them rules the configuration out.
pub(crate) fn check(diagnostics: Diagnostics, strict: bool) -> Result<Vec<Diagnostic>, InvalidConfiguration> {
    let has_errors = diagnostics.has_errors();
    let more = diagnostics.more();
    let diagnostics = diagnostics.sorted();
    if has_errors || (strict && !diagnostics.is_empty()) {
        return Err(InvalidConfiguration { diagnostics, more, strict });
    }
    let last = diagnostics.last().filter(|_| more.1 > 0);
    let more = last.map(|last| Diagnostic {
        is_warning: true,
        ..Diagnostic::error(&last.file, None, format!("there are {} more warnings", more.1))
    });
    Ok(diagnostics.into_iter().chain(more).collect())
}
