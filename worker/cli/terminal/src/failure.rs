//! How a command fails: what went wrong, what may help, and the exit code.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// The exit code of what has no code of its own.
const OTHER: u8 = 1;

/// Why a command has failed: what went wrong and, in a line of its own, what may help.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure with an exit code of the program's own.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// A failure with exit code 1.
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(OTHER, message)
    }

    /// An error as a failure. Its causes belong to the message.
    pub fn of(code: u8, error: &(dyn Error + 'static)) -> Self {
        Self::new(code, told(error))
    }

    /// Says where it was.
    pub fn at(self, place: &impl fmt::Display) -> Self {
        Self { message: format!("{} at {place}", self.message), ..self }
    }

    /// Says what may help.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// What the program ends with.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(formatter, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

impl Error for Failure {}

/// An error with its causes, each said once: libraries often repeat a cause in the message.
pub fn told(error: &(dyn Error + 'static)) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    struct Caused {
        message: &'static str,
        source: Option<Box<Caused>>,
    }

    fn caused(messages: &[&'static str]) -> Caused {
        let (message, causes) = messages.split_first().expect("an error says something");
        let source = (!causes.is_empty()).then(|| Box::new(caused(causes)));
        Caused { message, source }
    }

    #[test]
    fn an_error_is_told_with_its_causes_each_once() {
        let error = caused(&["connect: refused", "refused", "os error 111"]);
        assert_eq!(told(&error), "connect: refused: os error 111");
    }

    #[test]
    fn a_failure_says_where_it_was_and_what_may_help() {
        let failure = Failure::of(3, &caused(&["connect", "refused"])).at(&"rabbit:5672");
        assert_eq!(failure.to_string(), "connect: refused at rabbit:5672");
        assert_eq!(failure.exit_code(), ExitCode::from(3));
        let hinted = Failure::other("no such queue").hint("is the name right?");
        assert_eq!(hinted.to_string(), "no such queue\n  is the name right?");
        assert_eq!(hinted.exit_code(), ExitCode::FAILURE);
    }
}
