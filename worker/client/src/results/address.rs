//! Where the result store is, from a secret, a mounted directory or a URI.

use crate::fields::Fields;
use crate::uri::{AddressError, Uri, encode, host_in_uri, parse_port};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

const URI_KEYS: &[&str] = &["uri", "url", "REDIS_URL", "CELERY_RESULT_BACKEND"];
const FIELD_KEYS: &[&str] = &["host", "port", "username", "password", "db"];
const EXPECTED: &str = "`uri` (also `url`, `REDIS_URL`, `CELERY_RESULT_BACKEND`), or `host` with `port`, `username`, \
                        `password` and `db`";
const PORT: u16 = 6379;

/// Where results are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResultStoreAddress {
    /// In Redis: `redis://` or, with TLS, `rediss://`.
    Redis(RedisAddress),
    /// In a queue of the caller's own, on the broker: `rpc://`.
    Rpc,
}

/// A Redis server and a database on it.
///
/// `Display` and `Debug` leave out the password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisAddress {
    /// Name or IP address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// User name, if the server has users.
    pub username: Option<String>,
    /// Password, if there is one.
    pub password: Option<String>,
    /// Number of the database.
    pub database: i64,
    /// Whether to speak TLS.
    pub tls: bool,
}

impl ResultStoreAddress {
    /// Reads the keys of a secret: a URI, or `host` with `port`, `username`, `password` and `db`.
    ///
    /// # Errors
    /// When no key makes an address; the message names keys, never values.
    pub fn from_fields<K: AsRef<str>, V: AsRef<[u8]>>(
        fields: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, AddressError> {
        Self::resolve(&Fields::new(fields, &[FIELD_KEYS, URI_KEYS].concat())?)
    }

    /// Reads a directory with one file for each key, as Kubernetes mounts a secret.
    ///
    /// # Errors
    /// As [`from_fields`](Self::from_fields), and when the directory can't be read.
    pub fn from_directory(directory: &Path) -> Result<Self, AddressError> {
        Self::resolve(&Fields::read(directory, &[FIELD_KEYS, URI_KEYS].concat())?)
    }

    fn resolve(fields: &Fields) -> Result<Self, AddressError> {
        if let Some(uri) = fields.get(URI_KEYS) {
            return uri.parse();
        }
        let text = |key: &str| fields.get(&[key]).map(str::to_owned);
        let host = text("host").ok_or_else(|| fields.missing(EXPECTED))?;
        Ok(Self::Redis(RedisAddress {
            host,
            port: fields.get(&["port"]).map(parse_port).transpose()?.unwrap_or(PORT),
            username: text("username"),
            password: text("password"),
            database: fields.get(&["db"]).map_or(Ok(0), parse_database)?,
            tls: false,
        }))
    }
}

fn parse_database(text: &str) -> Result<i64, AddressError> {
    text.trim().parse().ok().filter(|database| *database >= 0).ok_or(AddressError::Database)
}

impl FromStr for ResultStoreAddress {
    type Err = AddressError;

    /// Reads `redis://user:password@host:port/db`, `rediss://…` or `rpc://`.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let uri = Uri::parse(text, "redis")?;
        let tls = match uri.scheme.as_str() {
            "redis" => false,
            "rediss" => true,
            "rpc" => return Ok(Self::Rpc),
            scheme => {
                let place = "result store (redis, rediss or rpc)";
                return Err(AddressError::Scheme { scheme: scheme.to_owned(), place });
            }
        };
        if uri.host.is_empty() {
            return Err(AddressError::NoHost);
        }
        let path = uri.path.as_deref().filter(|path| !path.is_empty());
        Ok(Self::Redis(RedisAddress {
            database: path.map_or(Ok(0), parse_database)?,
            port: uri.port.unwrap_or(PORT),
            host: uri.host,
            username: uri.username,
            password: uri.password,
            tls,
        }))
    }
}

impl RedisAddress {
    /// The address as a URI **with its password**, for programs that take nothing else.
    #[must_use]
    pub fn to_uri(&self) -> String {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let username = self.username.as_deref().map(encode).unwrap_or_default();
        let password = self.password.as_deref().map(|password| format!(":{}", encode(password)));
        let credentials = match (username, password) {
            (username, None) if username.is_empty() => String::new(),
            (username, password) => format!("{username}{}@", password.unwrap_or_default()),
        };
        format!("{scheme}://{credentials}{}:{}/{}", host_in_uri(&self.host), self.port, self.database)
    }
}

impl fmt::Display for RedisAddress {
    /// `redis://user@host:6379/0`, without the password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&Self { password: None, ..self.clone() }.to_uri())
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RedisAddress({self})")
    }
}

impl fmt::Display for ResultStoreAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(address) => address.fmt(formatter),
            Self::Rpc => formatter.write_str("rpc://"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(text: &str) -> RedisAddress {
        match text.parse().unwrap() {
            ResultStoreAddress::Redis(address) => address,
            ResultStoreAddress::Rpc => panic!("{text} is not Redis"),
        }
    }

    #[test]
    fn reads_uris() {
        let address = redis("rediss://user:p@ss@h:6380/3?ssl_cert_reqs=none");
        assert_eq!(
            (address.host.as_str(), address.port, address.database, address.tls),
            ("h", 6380, 3, true)
        );
        assert_eq!((address.username.as_deref(), address.password.as_deref()), (Some("user"), Some("p@ss")));
        let address = redis("redis://:secret@h");
        assert_eq!((address.username, address.password.as_deref()), (None, Some("secret")));
        assert_eq!((address.port, address.database), (6379, 0));
        assert_eq!("rpc://".parse(), Ok(ResultStoreAddress::Rpc));
    }

    #[test]
    fn reads_fields() {
        let pairs = [("host", "h"), ("port", "1\n"), ("password", "secret"), ("db", "2")];
        let expected = redis("redis://:secret@h:1/2");
        assert_eq!(ResultStoreAddress::from_fields(pairs), Ok(ResultStoreAddress::Redis(expected)));
        for key in URI_KEYS {
            let address = ResultStoreAddress::from_fields([(key, "redis://h")]);
            assert_eq!(address, "redis://h".parse(), "{key}");
        }
    }

    #[test]
    fn the_password_is_never_shown() {
        let address = redis("redis://user:hunter2@h/1");
        assert_eq!(address.to_string(), "redis://user@h:6379/1");
        assert!(!format!("{address:?}").contains("hunter2"));
        assert_eq!(redis("redis://:hunter2@h").to_string(), "redis://h:6379/0");
        assert_eq!(redis(&address.to_uri()), address);
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!("redis://h/x".parse::<ResultStoreAddress>(), Err(AddressError::Database));
        assert_eq!("redis://".parse::<ResultStoreAddress>(), Err(AddressError::NoHost));
        let error = "memcached://h".parse::<ResultStoreAddress>().unwrap_err();
        assert_eq!(error.to_string(), "`memcached` is not supported as result store (redis, rediss or rpc)");
        let error = ResultStoreAddress::from_fields([("hostname", "h")]).unwrap_err();
        assert!(error.to_string().ends_with("found hostname"), "{error}");
    }
}
