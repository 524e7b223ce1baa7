//! How a command fails: what went wrong, what may help, and the exit code.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// What `--help` ends with; docs/kubectl.md has it too.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done; nothing is wrong
  1  something else went wrong, such as a name that isn't there
  2  wrong usage
  3  the API server can't be reached, or refuses
  4  not done in time
  5  doctor: something is wrong
  6  doctor: nothing wrong was found, but not everything could be looked at";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Other = 1,
    Refused = 3,
    Late = 4,
}

/// Why a command has failed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    message: String,
    hint: Option<String>,
}

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self::new(Code::Other, message)
    }

    /// The API server can't be reached, or there is nothing to reach it with.
    pub(crate) fn unreachable(error: &(dyn Error + 'static)) -> Self {
        Self::new(Code::Refused, told(error))
            .hint("which cluster, and who you are there, says `kubectl config current-context`")
    }

    pub(crate) fn late(message: impl Into<String>) -> Self {
        Self::new(Code::Late, message)
    }

    /// The API server's answer to what was asked of it.
    pub(crate) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.is_not_found() => Self::other(&status.message),
            kube::Error::Api(status) => Self::new(Code::Refused, &status.message),
            error => Self::unreachable(error),
        }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code as u8)
    }
}

/// An error with its causes, each said once.
pub(crate) fn told(error: &(dyn Error + 'static)) -> String {
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

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => writeln!(formatter, "  {hint}"),
            None => Ok(()),
        }
    }
}
