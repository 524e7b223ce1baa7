//! How commands fail: the exit codes, and what the API server's errors mean.

use std::error::Error;

use soloist_terminal::Failure;

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

const REFUSED: u8 = 3;
const LATE: u8 = 4;

/// The API server can't be reached, or there is nothing to reach it with.
pub(crate) fn unreachable(error: &(dyn Error + 'static)) -> Failure {
    Failure::of(REFUSED, error)
        .hint("which cluster, and who you are there, says `kubectl config current-context`")
}

/// It was not done in time.
pub(crate) fn late(message: impl Into<String>) -> Failure {
    Failure::new(LATE, message)
}

/// The API server's answer to what was asked of it.
pub(crate) fn of(error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) if status.is_not_found() => Failure::other(&status.message),
        kube::Error::Api(status) => Failure::new(REFUSED, &status.message),
        error => unreachable(error),
    }
}
