//! Where the broker is and how to log in, from a secret, a mounted directory or a URI.

use crate::fields::Fields;
use crate::uri::{AddressError, Uri, encode, host_in_uri, parse_port};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

const URI_KEYS: &[&str] =
    &["uri", "url", "amqp_url", "AMQP_URL", "CELERY_BROKER_URL", "RABBITMQ_URL", "connection_string"];
const FIELD_KEYS: &[&str] =
    &["username", "password", "host", "port", "vhost", "managementUri", "ca.crt", "tls.crt", "tls.key"];
const EXPECTED: &str = "`host` with `username`, `password`, `port` and `vhost`, or `uri` (also `url`, `amqp_url`, \
                        `AMQP_URL`, `CELERY_BROKER_URL`, `RABBITMQ_URL`, `connection_string`)";

/// RabbitMQ's ports: plain, with TLS, and of the management API plain and with TLS.
const PORT: u16 = 5672;
const TLS_PORT: u16 = 5671;
const MANAGEMENT_PORT: u16 = 15672;
const MANAGEMENT_TLS_PORT: u16 = 15671;

/// Half of the server's default: a dead peer is noticed in a minute rather than two.
const HEARTBEAT_SECONDS: u16 = 30;
/// Lapin keeps buffers of 32 frames both ways, so the server's own 128 KiB would cost each connection 8 MiB of memory.
const FRAME_BYTES: u32 = 16 << 10;
/// Longest wait for a connection to be made, unless the URI says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A RabbitMQ server, a virtual host on it and a user.
///
/// `Display` and `Debug` leave out the password.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerAddress {
    /// Name or IP address.
    pub host: String,
    /// AMQP port.
    pub port: u16,
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Virtual host.
    pub vhost: String,
    /// Whether to speak TLS.
    pub tls: bool,
    /// Certificates for TLS beyond those of the system.
    pub certificates: Certificates,
    /// Interval of AMQP heartbeats.
    pub heartbeat: Duration,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Largest frame of AMQP, in bytes; RabbitMQ accepts 8 KiB and up. A longer message takes more frames, but its headers have to fit
    /// into one. A connection's buffers are 64 times as large.
    pub frame_bytes: u32,
    management: Option<Management>,
}

/// Certificates in PEM form.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Certificates {
    /// Authorities to trust besides the system's.
    pub authorities: Option<String>,
    /// Client certificate and its key.
    pub client: Option<(String, String)>,
}

#[derive(Clone, PartialEq, Eq)]
struct Management {
    base: String,
    username: Option<String>,
    password: Option<String>,
}

impl BrokerAddress {
    /// Reads the keys of a secret.
    ///
    /// With a `host`, the fields `username`, `password`, `port` and `vhost` make the address (RabbitMQ's cluster operator
    /// writes them); otherwise a URI does, from the first key there is of `uri`, `url`, `amqp_url`, `AMQP_URL`,
    /// `CELERY_BROKER_URL`, `RABBITMQ_URL` and `connection_string`. A URI without credentials takes those of the fields.
    /// TLS is spoken with `amqps`, or on port 5671, with the optional `ca.crt`, `tls.crt` and `tls.key`. The management
    /// API is at `managementUri`, or on the broker's host.
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
        let text = |key: &str| fields.get(&[key]).map(str::to_owned);
        let mut address = if let Some(host) = text("host") {
            let port = fields.get(&["port"]).map(parse_port).transpose()?;
            let uri = Uri { host, port, path: text("vhost"), ..Uri::default() };
            Self::from_uri(uri)?
        } else if let Some(uri) = fields.get(URI_KEYS) {
            Self::from_uri(Uri::parse(uri, "amqp")?)?
        } else {
            return Err(fields.missing(EXPECTED));
        };
        if address.username.is_empty() {
            address.username = text("username").unwrap_or_default();
            address.password = text("password").unwrap_or_default();
        }
        address.certificates.authorities = text("ca.crt");
        address.certificates.client = text("tls.crt").zip(text("tls.key"));
        address.management = fields.get(&["managementUri"]).map(Management::from_str).transpose()?;
        Ok(address.with_default_user())
    }

    fn from_uri(uri: Uri) -> Result<Self, AddressError> {
        let tls = match uri.scheme.as_str() {
            "" | "amqp" | "pyamqp" | "librabbitmq" => uri.port == Some(TLS_PORT),
            "amqps" => true,
            scheme => {
                return Err(AddressError::Scheme {
                    scheme: scheme.to_owned(),
                    place: "broker (amqp or amqps)",
                });
            }
        };
        if uri.host.is_empty() {
            return Err(AddressError::NoHost);
        }
        let seconds = |key| uri.query_number(key).filter(|seconds| *seconds > 0).map(Duration::from_secs);
        Ok(Self {
            port: uri.port.unwrap_or(if tls { TLS_PORT } else { PORT }),
            heartbeat: seconds("heartbeat").unwrap_or(Duration::from_secs(HEARTBEAT_SECONDS.into())),
            connect_timeout: uri
                .query_number("connection_timeout")
                .map_or(CONNECT_TIMEOUT, Duration::from_millis),
            frame_bytes: FRAME_BYTES,
            username: uri.username.unwrap_or_default(),
            password: uri.password.unwrap_or_default(),
            vhost: uri.path.filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned()),
            host: uri.host,
            tls,
            certificates: Certificates::default(),
            management: None,
        })
    }

    /// RabbitMQ's own default, which it accepts from its own machine only.
    fn with_default_user(mut self) -> Self {
        if self.username.is_empty() {
            self.username = "guest".to_owned();
            if self.password.is_empty() {
                self.password = "guest".to_owned();
            }
        }
        self
    }

    /// The address for lapin, built from its parts: no encoding is needed, and a heartbeat and a timeout are set.
    #[must_use]
    pub fn amqp_uri(&self) -> AMQPUri {
        AMQPUri {
            scheme: if self.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username: self.username.clone(), password: self.password.clone() },
                host: self.host.clone(),
                port: self.port,
            },
            vhost: self.vhost.clone(),
            query: AMQPQueryString {
                heartbeat: Some(u16::try_from(self.heartbeat.as_secs()).unwrap_or(HEARTBEAT_SECONDS)),
                connection_timeout: u64::try_from(self.connect_timeout.as_millis()).ok(),
                frame_max: Some(self.frame_bytes),
                ..AMQPQueryString::default()
            },
        }
    }

    /// The certificates for lapin.
    #[must_use]
    pub fn tls_config(&self) -> OwnedTLSConfig {
        OwnedTLSConfig {
            identity: self.certificates.client.as_ref().map(|(certificate, key)| OwnedIdentity::PKCS8 {
                pem: certificate.as_bytes().to_vec(),
                key: key.as_bytes().to_vec(),
            }),
            cert_chain: self.certificates.authorities.clone(),
        }
    }

    /// Base URL of the management API, without a slash at the end and without credentials.
    #[must_use]
    pub fn management_url(&self) -> String {
        if let Some(management) = &self.management {
            return management.base.clone();
        }
        let (scheme, port) =
            if self.tls { ("https", MANAGEMENT_TLS_PORT) } else { ("http", MANAGEMENT_PORT) };
        format!("{scheme}://{}:{port}", host_in_uri(&self.host))
    }

    /// User name and password for the management API: its own, or the broker's.
    #[must_use]
    pub fn management_credentials(&self) -> (&str, &str) {
        let own =
            self.management.as_ref().and_then(|own| own.username.as_deref().zip(own.password.as_deref()));
        own.unwrap_or((&self.username, &self.password))
    }

    /// The address as a URI **with its password**, for programs that take nothing else.
    #[must_use]
    pub fn to_uri(&self) -> String {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        let (username, password) = (encode(&self.username), encode(&self.password));
        let (host, vhost) = (host_in_uri(&self.host), encode(&self.vhost));
        format!("{scheme}://{username}:{password}@{host}:{}/{vhost}", self.port)
    }
}

impl FromStr for BrokerAddress {
    type Err = AddressError;

    /// Reads `amqp://user:password@host:port/vhost`; see [`from_fields`](Self::from_fields) for what may be left out.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Ok(Self::from_uri(Uri::parse(text, "amqp")?)?.with_default_user())
    }
}

impl FromStr for Management {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let uri = Uri::parse(text, "http")?;
        if !matches!(uri.scheme.as_str(), "http" | "https") {
            return Err(AddressError::Scheme { scheme: uri.scheme, place: "management API (http or https)" });
        }
        if uri.host.is_empty() {
            return Err(AddressError::NoHost);
        }
        let port = uri.port.map(|port| format!(":{port}")).unwrap_or_default();
        let path = uri.path.as_deref().unwrap_or_default().trim_end_matches('/');
        // A pasted address often ends in the API's own prefix.
        let path = path.strip_suffix("api").unwrap_or(path).trim_matches('/');
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        let base = format!("{}://{}{port}{path}", uri.scheme, host_in_uri(&uri.host));
        Ok(Self { base, username: uri.username, password: uri.password })
    }
}

impl fmt::Display for BrokerAddress {
    /// `amqp://user@host:5672/vhost`, without the password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        let (username, host) = (encode(&self.username), host_in_uri(&self.host));
        write!(formatter, "{scheme}://{username}@{host}:{}/", self.port)?;
        if self.vhost == "/" { Ok(()) } else { formatter.write_str(&encode(&self.vhost)) }
    }
}

impl fmt::Debug for BrokerAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BrokerAddress({self})")
    }
}

#[cfg(test)]
mod tests;
