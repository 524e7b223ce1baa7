//! Content types and compression: from the bytes of a body to JSON text.

mod compression;

pub(crate) use compression::expand;

use std::borrow::Cow;

/// Content type of JSON, the only one that is read or written.
pub const JSON: &str = "application/json";
/// Content encoding of what we write.
pub const UTF_8: &str = "utf-8";

/// What a message may cost to decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest decompressed body in bytes; a small compressed body can expand a thousandfold.
    pub decompressed_bytes: usize,
}

impl Default for Limits {
    /// 128 MiB, the largest message RabbitMQ itself lets through by default.
    fn default() -> Self {
        Self { decompressed_bytes: 128 << 20 }
    }
}

/// Why a body's bytes could not be turned into JSON text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// The content type is not JSON: pickle, YAML, msgpack, or missing.
    #[error("{}", disallowed(.content_type.as_deref()))]
    Disallowed {
        /// The type that the message named.
        content_type: Option<String>,
    },
    /// A text encoding other than UTF-8.
    #[error("content encoding `{0}` is not supported, only utf-8 is")]
    Encoding(String),
    /// A compression that kombu doesn't have.
    #[error("compression `{0}` is not supported, only zlib, bzip2, xz, brotli and zstd are")]
    Compression(String),
    /// The compressed bytes are damaged.
    #[error("the compressed body is damaged: {0}")]
    Damaged(String),
    /// Decompressing was stopped at the limit.
    #[error("the body expands beyond {0} bytes")]
    TooLarge(usize),
}

fn disallowed(content_type: Option<&str>) -> String {
    let Some(content_type) = content_type else { return "the message names no content type".to_owned() };
    let name = match essence(content_type).as_str() {
        "application/x-python-serialize" => " (pickle)",
        "application/x-yaml" => " (yaml)",
        "application/x-msgpack" => " (msgpack)",
        _ => "",
    };
    format!("content type {content_type}{name} is not accepted, only {JSON} is")
}

/// The type without its parameters: `application/json` of `Application/JSON; charset=utf-8`.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Checks that a body is JSON in UTF-8, and undoes its compression.
///
/// # Errors
/// See [`ContentError`].
pub fn decode<'a>(
    content_type: Option<&str>,
    content_encoding: Option<&str>,
    compression: Option<&str>,
    body: &'a [u8],
    limits: &Limits,
) -> Result<Cow<'a, [u8]>, ContentError> {
    if content_type.map(essence).as_deref() != Some(JSON) {
        return Err(ContentError::Disallowed { content_type: content_type.map(str::to_owned) });
    }
    if let Some(encoding) = content_encoding {
        let known = ["utf-8", "utf8", "us-ascii", "ascii", "binary"];
        if !known.iter().any(|name| encoding.eq_ignore_ascii_case(name)) {
            return Err(ContentError::Encoding(encoding.to_owned()));
        }
    }
    match compression {
        None => Ok(Cow::Borrowed(body)),
        Some(name) => expand(name, body, limits.decompressed_bytes).map(Cow::Owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json<'a>(
        compression: Option<&str>,
        body: &'a [u8],
        limit: usize,
    ) -> Result<Cow<'a, [u8]>, ContentError> {
        decode(Some(JSON), Some(UTF_8), compression, body, &Limits { decompressed_bytes: limit })
    }

    #[test]
    fn an_uncompressed_body_is_not_copied() {
        assert!(matches!(json(None, b"[]", 10), Ok(Cow::Borrowed(b"[]"))));
    }

    #[test]
    fn other_compressions_are_named() {
        let unknown = Err(ContentError::Compression("application/x-snappy".into()));
        assert_eq!(json(Some("application/x-snappy"), b"", 10), unknown);
    }

    #[test]
    fn everything_but_json_is_refused_by_name() {
        let limits = Limits::default();
        let refused = |content_type| decode(content_type, None, None, b"", &limits).unwrap_err().to_string();
        assert!(refused(Some("application/x-python-serialize")).contains("(pickle)"));
        assert!(refused(Some("application/x-msgpack")).contains("(msgpack)"));
        assert_eq!(refused(None), "the message names no content type");
        assert!(decode(Some("application/JSON; charset=utf-8"), None, None, b"1", &limits).is_ok());
        assert_eq!(
            decode(Some(JSON), Some("latin-1"), None, b"1", &limits),
            Err(ContentError::Encoding("latin-1".into()))
        );
    }
}
