//! Plain HTTP to the servers beside the cluster: one request, one answer, no more than the harness and tests need.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer to be had within a second; a server that starts may take a few.
const PATIENCE: Duration = Duration::from_secs(5);

/// GETs `http://host:port/path` and gives back the body.
///
/// # Errors
/// If there is no answer within 5 seconds, or another one than 2xx.
pub async fn get(url: &str) -> Result<String> {
    request("GET", url, None, "").await
}

/// GETs JSON.
///
/// # Errors
/// As [`get`], and if the body isn't JSON.
pub async fn get_json(url: &str) -> Result<serde_json::Value> {
    serde_json::from_str(&get(url).await?).with_context(|| format!("read the JSON of {url}"))
}

/// Sends a request with a JSON body as `user`, who is `name:password`.
///
/// # Errors
/// As [`get`].
pub async fn send(method: &str, url: &str, user: &str, body: &str) -> Result<String> {
    request(method, url, Some(user), body).await
}

async fn request(method: &str, url: &str, user: Option<&str>, body: &str) -> Result<String> {
    tokio::time::timeout(PATIENCE, exchange(method, url, user, body))
        .await
        .map_err(|_| anyhow!("no answer within {PATIENCE:?}"))
        .flatten()
        .with_context(|| format!("{method} {url}"))
}

async fn exchange(method: &str, url: &str, user: Option<&str>, body: &str) -> Result<String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| anyhow!("not an http:// URL"))?;
    let (host, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
    let authorization = user.map(|user| format!("Authorization: Basic {}\r\n", base64(user.as_bytes())));
    // Version 1.0: the answer ends with the connection, and is never sent in chunks.
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {host}\r\n{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        authorization.unwrap_or_default(),
        body.len(),
    );
    let mut stream = TcpStream::connect(host).await?;
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| anyhow!("an answer without an end of head"))?;
    let status = head.lines().next().unwrap_or_default();
    let code = status.split(' ').nth(1).unwrap_or_default();
    if !code.starts_with('2') {
        bail!("{status}: {}", body.trim());
    }
    Ok(body.to_owned())
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().enumerate().fold(0, |bits, (i, byte)| bits | u32::from(*byte) << (16 - 8 * i));
        for i in 0..4 {
            let digit = (bits >> (18 - 6 * i)) & 63;
            text.push(if i <= chunk.len() { char::from(ALPHABET[digit as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads_what_is_left() {
        assert_eq!(base64(b"guest:guest"), "Z3Vlc3Q6Z3Vlc3Q=");
        assert_eq!(base64(b"foobar"), "Zm9vYmFy");
        assert_eq!(base64(b"f"), "Zg==");
    }

    #[tokio::test]
    async fn an_answer_other_than_2xx_is_an_error_with_its_body() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = vec![0; 1024];
            let length = stream.read(&mut seen).await.unwrap();
            stream.write_all(b"HTTP/1.0 404 Not Found\r\n\r\nno such queue\n").await.unwrap();
            String::from_utf8_lossy(&seen[..length]).into_owned()
        });
        let error = get(&format!("http://{address}/api/queues")).await.unwrap_err();
        assert!(format!("{error:#}").contains("404 Not Found: no such queue"), "{error:#}");
        assert!(server.await.unwrap().starts_with("GET /api/queues HTTP/1.0\r\n"));
    }
}
