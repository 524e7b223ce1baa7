//! Addresses as people put them into secrets: URIs whose passwords are often not percent-encoded.

use std::fmt;

/// The parts of a URI, decoded.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Uri {
    pub(crate) scheme: String,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
    /// What follows the first slash, decoded; none without a slash.
    pub(crate) path: Option<String>,
    pub(crate) query: Vec<(String, String)>,
}

/// Why a text is no address. Never holds the text itself: it has a password in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no `scheme://` at the start.
    #[error("the address has no scheme such as {expected}://")]
    NoScheme {
        /// A scheme that would do.
        expected: &'static str,
    },
    /// The scheme belongs to something else.
    #[error("`{scheme}` is not supported as {place}")]
    Scheme {
        /// The scheme given.
        scheme: String,
        /// Where the address was to be used.
        place: &'static str,
    },
    /// There is no host.
    #[error("the address has no host")]
    NoHost,
    /// What follows the host's colon is no port.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// The database is not a number.
    #[error("the database is not a number")]
    Database,
    /// Several addresses, as Celery takes them for failover.
    #[error("several addresses in one are not supported")]
    Several,
    /// None of the keys that would make an address.
    #[error("no address: expected {expected}; found {found}")]
    NoKeys {
        /// The keys that would have done.
        expected: &'static str,
        /// The keys that are there (names only).
        found: String,
    },
    /// A key's value is not text.
    #[error("key `{0}` is not UTF-8 text")]
    NotText(String),
    /// The directory that holds one file for each key can't be read.
    #[error("read `{path}`")]
    Directory {
        /// The directory or file.
        path: std::path::PathBuf,
        /// Why.
        source: std::sync::Arc<IoError>,
    },
}

/// An [`std::io::Error`] that compares by its kind.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct IoError(#[from] std::io::Error);

impl PartialEq for IoError {
    fn eq(&self, other: &Self) -> bool {
        self.0.kind() == other.0.kind()
    }
}

impl Eq for IoError {}

impl fmt::Debug for Uri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}:{:?}", self.scheme, self.host, self.port)
    }
}

impl Uri {
    /// Splits an address into its parts.
    ///
    /// Credentials end at the last `@`, so that a raw password may hold any of `@ : / ? #`; a user name may not hold a
    /// raw colon. `%xx` is decoded where it is valid and kept where it is not.
    pub(crate) fn parse(text: &str, expected: &'static str) -> Result<Self, AddressError> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").ok_or(AddressError::NoScheme { expected })?;
        if rest.contains(";") && rest.split(';').skip(1).any(|next| next.contains("://")) {
            return Err(AddressError::Several);
        }
        let (credentials, rest) = match rest.rsplit_once('@') {
            Some((credentials, rest)) => (Some(credentials), rest),
            None => (None, rest),
        };
        let (username, password) = match credentials.map(|text| text.split_once(':').unwrap_or((text, ""))) {
            Some((username, password)) => (given(username), given(password)),
            None => (None, None),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, Some(decode(path))),
            None => (rest, None),
        };
        let (host, port) = split_port(authority)?;
        let query = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (decode(key), decode(value)))
            .collect();
        Ok(Self { scheme: scheme.to_ascii_lowercase(), username, password, host, port, path, query })
    }

    /// A number from the query.
    pub(crate) fn query_number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.query.iter().find(|(name, _)| name == key).and_then(|(_, value)| value.parse().ok())
    }
}

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| decode(text))
}

fn split_port(authority: &str) -> Result<(String, Option<u16>), AddressError> {
    // An IPv6 address is in brackets, because it has colons of its own.
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or(AddressError::NoHost)?;
        let port = rest.strip_prefix(':').map(parse_port).transpose()?;
        return Ok((host.to_owned(), port));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(parse_port(port)?)),
        None => (authority, None),
    };
    Ok((decode(host), port))
}

/// Reads a port, which can't be 0.
pub(crate) fn parse_port(text: &str) -> Result<u16, AddressError> {
    text.trim().parse().ok().filter(|port| *port > 0).ok_or(AddressError::Port)
}

/// Decodes `%xx`, keeping whatever isn't a valid escape as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(&byte) = bytes.get(index) {
        let escaped = (byte == b'%')
            .then(|| text.get(index + 1..index + 3))
            .flatten()
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(escaped.unwrap_or(byte));
        index += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8(decoded).unwrap_or_else(|_| text.to_owned())
}

/// A host as it stands in a URI: IPv6 in brackets.
pub(crate) fn host_in_uri(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// Percent-encodes everything but unreserved characters.
pub(crate) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Uri {
        Uri::parse(text, "amqp").unwrap()
    }

    #[test]
    fn a_raw_password_may_hold_anything() {
        let uri = parse("amqp://user:p@ss:w/rd?#%zz%@host:5673/v");
        assert_eq!(uri.username.as_deref(), Some("user"));
        assert_eq!(uri.password.as_deref(), Some("p@ss:w/rd?#%zz%"));
        assert_eq!((uri.host.as_str(), uri.port, uri.path.as_deref()), ("host", Some(5673), Some("v")));
    }

    #[test]
    fn an_encoded_password_is_decoded() {
        let uri = parse("amqp://us%40er:p%40%2F%C3%A9@host");
        assert_eq!((uri.username.as_deref(), uri.password.as_deref()), (Some("us@er"), Some("p@/é")));
    }

    #[test]
    fn what_is_left_out_is_none() {
        let uri = parse("redis://host");
        assert_eq!((uri.username, uri.password, uri.port, uri.path), (None, None, None, None));
        let uri = parse("redis://:secret@host/");
        assert_eq!((uri.username, uri.password.as_deref()), (None, Some("secret")));
        assert_eq!(uri.path.as_deref(), Some(""));
    }

    #[test]
    fn hosts_may_be_ipv6_and_queries_are_kept() {
        let uri = parse("amqp://[::1]:5672/%2F?heartbeat=7&x=%41");
        assert_eq!((uri.host.as_str(), uri.port, uri.path.as_deref()), ("::1", Some(5672), Some("/")));
        assert_eq!(uri.query_number::<u16>("heartbeat"), Some(7));
        assert_eq!(uri.query[1].1, "A");
    }

    #[test]
    fn errors_never_repeat_the_address() {
        for text in ["user:secret@host", "amqp://user:secret@host:port", "amqp://u:secret@[::1"] {
            let message = Uri::parse(text, "amqp").unwrap_err().to_string();
            assert!(!message.contains("secret"), "{message}");
        }
        assert_eq!(Uri::parse("amqp://a:secret@x;amqp://b:secret@y", "amqp"), Err(AddressError::Several));
    }
}
