//! Why a message is no call of a task, and what is stored as its result.

use crate::Exception;
use crate::content::ContentError;

/// A message that can't be run: rejected without requeue, and stored as a failure when its id could be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{malformed}")]
pub struct DecodeError {
    /// Id of the call, if it could be read.
    pub task_id: Option<String>,
    /// Name of the task, if it could be read.
    pub task: Option<String>,
    /// What is wrong.
    pub malformed: Malformed,
}

impl DecodeError {
    /// The exception to store as the result.
    #[must_use]
    pub fn exception(&self) -> Exception {
        self.malformed.exception()
    }
}

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A content type that isn't JSON: `kombu.exceptions.ContentDisallowed`.
    #[error("{0}")]
    ContentDisallowed(String),
    /// A body that can't be decompressed or isn't JSON: `kombu.exceptions.DecodeError`.
    #[error("{0}")]
    Undecodable(String),
    /// JSON, but its fields contradict the protocol: `celery.exceptions.InvalidTaskError`.
    #[error("{0}")]
    InvalidTask(String),
    /// Neither protocol 2 nor 1: there is no `task` header, and the body isn't an object with `task` and `id`.
    #[error("not a task message: no `task` header, and no task in the body")]
    NotATask,
}

impl Malformed {
    /// The exception to store as the result.
    #[must_use]
    pub fn exception(&self) -> Exception {
        let message = self.to_string();
        match self {
            Self::ContentDisallowed(_) => Exception::content_disallowed(message),
            Self::Undecodable(_) => Exception::decode_error(message),
            Self::InvalidTask(_) | Self::NotATask => Exception::invalid_task(message),
        }
    }

    /// A fixed word for logs and metric labels.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::ContentDisallowed(_) => "content_disallowed",
            Self::Undecodable(_) => "undecodable",
            Self::InvalidTask(_) => "invalid_task",
            Self::NotATask => "not_a_task",
        }
    }
}

impl From<ContentError> for Malformed {
    fn from(error: ContentError) -> Self {
        match error {
            ContentError::Disallowed { .. } => Self::ContentDisallowed(error.to_string()),
            _ => Self::Undecodable(error.to_string()),
        }
    }
}
