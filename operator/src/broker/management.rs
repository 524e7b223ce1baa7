//! The few calls to RabbitMQ's management API that the operator makes.

use std::collections::HashMap;
use std::time::Duration;

use celery_client::BrokerAddress;
use reqwest::{Certificate, Client, Identity, Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longest wait for an answer. Writing a policy takes seconds on a broker with many.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A client of one broker's management API.
pub(super) struct Management {
    client: Client,
    base: String,
    username: String,
    password: String,
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ManagementError {
    #[error("certificates of the Secret: {0}")]
    Certificates(String),
    #[error("not reachable: {0}")]
    Unreachable(String),
    #[error("refuses user name and password")]
    Unauthorized,
    #[error("the user needs the tag `policymaker` (`rabbitmqctl set_user_tags`): {0}")]
    Forbidden(String),
    #[error("answers {0}")]
    Unexpected(String),
}

/// A policy of a virtual host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) pattern: String,
    #[serde(rename = "apply-to")]
    pub(super) apply_to: String,
    pub(super) priority: i64,
    pub(super) definition: Map<String, Value>,
}

impl Management {
    pub(super) fn new(address: &BrokerAddress) -> Result<Self, ManagementError> {
        let invalid = |error: reqwest::Error| ManagementError::Certificates(root_cause(&error));
        let mut builder = Client::builder().timeout(TIMEOUT).pool_idle_timeout(TIMEOUT);
        if let Some(authorities) = &address.certificates.authorities {
            for authority in Certificate::from_pem_bundle(authorities.as_bytes()).map_err(invalid)? {
                builder = builder.add_root_certificate(authority);
            }
        }
        if let Some((certificate, key)) = &address.certificates.client {
            let identity = Identity::from_pem(format!("{certificate}\n{key}").as_bytes()).map_err(invalid)?;
            builder = builder.identity(identity);
        }
        let (username, password) = address.management_credentials();
        Ok(Self {
            client: builder.build().map_err(invalid)?,
            base: address.management_url(),
            username: username.to_owned(),
            password: password.to_owned(),
        })
    }

    /// All policies of a virtual host.
    pub(super) async fn policies(&self, vhost: &str) -> Result<Vec<Policy>, ManagementError> {
        let answer = self.call(Method::GET, &["policies", vhost], &[], None).await?;
        serde_json::from_value(answer.unwrap_or(Value::Array(Vec::new())))
            .map_err(|error| ManagementError::Unexpected(error.to_string()))
    }

    /// Names of the policies that apply to the queues of a virtual host, by queue.
    ///
    /// A listing without statistics is the one answer that knows at once: that of a single queue lags behind by seconds.
    pub(super) async fn applied_policies(
        &self,
        vhost: &str,
    ) -> Result<HashMap<String, String>, ManagementError> {
        let answer = self.call(Method::GET, &["queues", vhost], &[("disable_stats", "true")], None).await?;
        let policy_of = |queue: &Value| {
            let policy = queue["policy"].as_str().filter(|policy| !policy.is_empty())?;
            Some((queue["name"].as_str()?.to_owned(), policy.to_owned()))
        };
        Ok(answer
            .iter()
            .flat_map(|queues| queues.as_array().into_iter().flatten())
            .filter_map(policy_of)
            .collect())
    }

    pub(super) async fn put_policy(&self, vhost: &str, policy: &Policy) -> Result<(), ManagementError> {
        let body =
            serde_json::to_vec(policy).map_err(|error| ManagementError::Unexpected(error.to_string()))?;
        self.call(Method::PUT, &["policies", vhost, &policy.name], &[], Some(body)).await?;
        Ok(())
    }

    pub(super) async fn delete_policy(&self, vhost: &str, name: &str) -> Result<(), ManagementError> {
        self.call(Method::DELETE, &["policies", vhost, name], &[], None).await?;
        Ok(())
    }

    /// The answer of the API; nothing if there is no such thing.
    async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Option<Value>, ManagementError> {
        let path: Vec<String> = path.iter().map(|segment| percent_encode(segment)).collect();
        let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let url = format!("{}/api/{}?{}", self.base, path.join("/"), query.join("&"));
        let mut request = self
            .client
            .request(method, url)
            .basic_auth(&self.username, Some(&self.password))
            .header("content-type", "application/json");
        if let Some(body) = body {
            request = request.body(body);
        }
        let unreachable = |error: reqwest::Error| ManagementError::Unreachable(root_cause(&error));
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let text = response.text().await.map_err(unreachable)?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED => Err(unauthorized(&text)),
            StatusCode::FORBIDDEN => Err(ManagementError::Forbidden(shortened(&text))),
            status if status.is_success() && text.is_empty() => Ok(None),
            status if status.is_success() => serde_json::from_str(&text)
                .map(Some)
                .map_err(|_| ManagementError::Unexpected("something else than JSON".to_owned())),
            status => Err(ManagementError::Unexpected(format!("{}: {}", status.as_u16(), shortened(&text)))),
        }
    }
}

/// A user without a management tag is refused like one with a wrong password, only with another reason.
fn unauthorized(text: &str) -> ManagementError {
    let answer = serde_json::from_str::<Value>(text).unwrap_or_default();
    match answer["reason"].as_str() {
        Some(reason) if reason.to_lowercase().contains("management") => {
            ManagementError::Forbidden(reason.to_owned())
        }
        _ => ManagementError::Unauthorized,
    }
}

/// What lies at the bottom of an error. The outer ones repeat the URL.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

fn percent_encode(segment: &str) -> String {
    let mut encoded = String::new();
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_without_a_tag_is_told_from_one_with_a_wrong_password() {
        // As RabbitMQ 3.10 says both.
        let no_tag = unauthorized(r#"{"error":"not_authorised","reason":"Not management user"}"#);
        assert!(no_tag.to_string().contains("`policymaker`"), "{no_tag}");
        let wrong = unauthorized(r#"{"error":"not_authorized","reason":"Login failed"}"#);
        assert!(matches!(wrong, ManagementError::Unauthorized), "{wrong}");
    }

    #[test]
    fn path_segments_are_encoded() {
        assert_eq!(percent_encode("/"), "%2F");
        assert_eq!(percent_encode("soloist.a b|c"), "soloist.a%20b%7Cc");
    }
}
