//! How a command fails: what went wrong, what may help, and the exit code.

use celery_client::queue::{QueueError, reply_code};
use celery_client::results::StoreError;
use celery_client::{
    AddressError, ConnectError, ControlError, EventsError, PublishError, ResultError, SendError, SetupError,
};
use std::error::Error;
use std::fmt;
use std::process::ExitCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Other = 1,
    Usage = 2,
    Unreachable = 3,
    NoAnswer = 4,
    Task = 5,
}

/// Why a command has failed: a type of our own, so that the client's errors turn into it.
#[derive(Debug)]
pub(crate) struct Failure(soloist_terminal::Failure);

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self(soloist_terminal::Failure::new(code as u8, message))
    }

    fn of(code: Code, error: &(dyn Error + 'static)) -> Self {
        Self(soloist_terminal::Failure::of(code as u8, error))
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Code::Other, message)
    }

    pub(crate) fn other(error: &(dyn Error + 'static)) -> Self {
        Self::of(Code::Other, error)
    }

    pub(crate) fn no_answer(message: impl Into<String>) -> Self {
        Self::new(Code::NoAnswer, message)
    }

    /// A task that has failed, or a worker that has answered with an error.
    pub(crate) fn task(message: impl Into<String>) -> Self {
        Self::new(Code::Task, message)
    }

    /// Says where it was.
    pub(crate) fn at(self, place: &impl fmt::Display) -> Self {
        Self(self.0.at(place))
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self(self.0.hint(hint))
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        self.0.exit_code()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl From<soloist_terminal::Failure> for Failure {
    fn from(failure: soloist_terminal::Failure) -> Self {
        Self(failure)
    }
}

impl From<AddressError> for Failure {
    fn from(error: AddressError) -> Self {
        Self::of(Code::Usage, &error)
            .hint("see --broker (SOLOIST_BROKER), --broker-dir, --results (SOLOIST_RESULTS), --results-dir")
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let failure = Self::of(Code::Unreachable, &error);
        let ConnectError::Refused { source, .. } = &error else {
            return failure.hint(
                "is this RabbitMQ's AMQP port, and does it speak TLS (amqps://) or not? Another address: --broker URL \
                 (SOLOIST_BROKER)",
            );
        };
        match reply_code(source) {
            // RabbitMQ tells an unknown virtual host and one that is not the user's by the same code.
            Some(530) => failure.hint(
                "does the virtual host at the end of --broker URL (SOLOIST_BROKER) exist, and may the user use it? See \
                 `rabbitmqctl list_vhosts` and `rabbitmqctl set_permissions`",
            ),
            Some(403) => failure.hint("check user and password in --broker URL (SOLOIST_BROKER)"),
            _ => failure.hint("is RabbitMQ running there? Another address: --broker URL (SOLOIST_BROKER)"),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let StoreError::Redis { source, .. } = &error else { return Self::of(Code::Other, &error) };
        let failure = Self::of(Code::Unreachable, &error);
        match source.kind() {
            redis::ErrorKind::AuthenticationFailed => {
                failure.hint("check user and password in --results URL (SOLOIST_RESULTS)")
            }
            _ if error.is_unreachable() || source.is_io_error() => {
                failure.hint("is Redis running there? Another address: --results URL (SOLOIST_RESULTS)")
            }
            _ => failure,
        }
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        let failure = Self::of(Code::Other, &error);
        match error {
            QueueError::Missing { .. } => {
                failure.hint("queues belong to a virtual host: the end of --broker URL (SOLOIST_BROKER)")
            }
            _ => failure,
        }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Connect(error) => error.into(),
            PublishError::Queue(error) => error.into(),
            PublishError::Unroutable { .. } => Self::of(Code::Other, &error)
                .hint("with --create-missing-queues true it is made as Celery would make it"),
            error => Self::of(Code::Other, &error),
        }
    }
}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        match error {
            SetupError::Broker(error) => error.into(),
            SetupError::Results(error) => error.into(),
        }
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Publish(error) => error.into(),
            SendError::Store(error) => error.into(),
            SendError::NoChords => {
                Self::of(Code::Usage, &error).hint("give one with --results redis://HOST (SOLOIST_RESULTS)")
            }
            error => Self::of(Code::Usage, &error),
        }
    }
}

impl From<ResultError> for Failure {
    fn from(error: ResultError) -> Self {
        match error {
            ResultError::Store(error) => error.into(),
            ResultError::NoResultStore => Self::of(Code::Usage, &error)
                .hint("say where results are with --results redis://HOST (SOLOIST_RESULTS)"),
            ResultError::Timeout { .. } => Self::of(Code::NoAnswer, &error)
                .hint("is a worker running for its queue? Wait longer with --timeout SECONDS"),
            ResultError::Task(error) => Self::of(Code::Task, &*error),
            error => Self::of(Code::Other, &error),
        }
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Connect(error) => error.into(),
            error => Self::of(Code::Unreachable, &error),
        }
    }
}

impl From<EventsError> for Failure {
    fn from(error: EventsError) -> Self {
        match error {
            EventsError::Connect(error) => error.into(),
            error => Self::of(Code::Unreachable, &error),
        }
    }
}

impl From<lapin::Error> for Failure {
    fn from(error: lapin::Error) -> Self {
        Self::of(Code::Unreachable, &error)
    }
}
