//! What is said to the person at the terminal.

use std::{
    error::Error,
    fmt::{self, Display},
    io::Write,
};

/// Why a command failed, in words.
#[derive(Debug)]
pub(crate) struct Failed(String);

impl Failed {
    /// What was attempted, and the error with its causes.
    pub(crate) fn new(what: impl Display, error: &dyn Error) -> Self {
        let mut text = format!("{what}: {error}");
        let mut said = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Some libraries repeat their source in their own words.
            if !said.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            said = cause_text;
            source = cause.source();
        }
        Self(text)
    }

    /// A failure that is no error of something else.
    pub(crate) fn because(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl Display for Failed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Prints a line on standard output. A closed pipe is nobody's fault.
pub(crate) fn line(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints text as it is on standard output.
pub(crate) fn text(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Says on standard error why the program ends.
pub(crate) fn error(failed: &Failed) {
    let _ = writeln!(std::io::stderr(), "error: {failed}");
}
