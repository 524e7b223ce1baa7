//! A proxy in front of the API server that understands HTTP: single requests fare as a test wants.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, TryStreamExt, stream};
use kube::config::AuthInfo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is answered by the API server.
    Pass,
    /// It is never answered.
    Hang,
    /// It is refused, to be tried again after a second.
    Refuse(StatusCode),
    /// It is answered by the API server, with one text in place of another.
    Replace(&'static str, &'static str),
}

type Rule = Box<dyn Fn(&Parts) -> Fate + Send + Sync>;

/// The proxy, on the loopback interface, without TLS. Who asks is told by the token that comes with a request. It ends when this is
/// dropped.
pub struct ApiProxy {
    /// Where it listens, as a kubeconfig names it.
    pub url: String,
    front: Arc<Front>,
    task: JoinHandle<()>,
}

struct Front {
    api_server: kube::Client,
    rule: Mutex<Rule>,
}

impl ApiProxy {
    /// Starts one in the network that the calling thread is in, to the API server of a configuration. All requests pass.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn to(mut config: kube::Config) -> Result<Self> {
        config.auth_info = AuthInfo::default();
        config.default_retry = false;
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen on the loopback interface")?;
        let address = listener.local_addr().context("find the proxy's port")?;
        let front = Front { api_server: config.try_into()?, rule: Mutex::new(Box::new(|_| Fate::Pass)) };
        let front = Arc::new(front);
        let router = axum::Router::new().fallback(answer).with_state(Arc::clone(&front));
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("the proxy of the API server has ended: {error}");
            }
        });
        Ok(Self { url: format!("http://{address}"), front, task })
    }

    /// States what becomes of requests from now on; those that hang go on doing so.
    pub fn set(&self, rule: impl Fn(&Parts) -> Fate + Send + Sync + 'static) {
        *self.front.rule.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(rule);
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(front): State<Arc<Front>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let fate = (front.rule.lock().unwrap_or_else(PoisonError::into_inner))(&parts);
    match fate {
        Fate::Hang => std::future::pending().await,
        Fate::Refuse(code) => (code, [(header::RETRY_AFTER, "1")], "not now\n").into_response(),
        Fate::Pass | Fate::Replace(..) => match front.ask(parts, body, fate).await {
            Ok(answer) => answer,
            Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}\n")).into_response(),
        },
    }
}

impl Front {
    async fn ask(&self, parts: Parts, body: Body, fate: Fate) -> Result<Response> {
        let is_watch = parts.uri.query().is_some_and(|query| query.contains("watch=true"));
        let body = to_bytes(body, usize::MAX).await.context("read the request")?;
        let request = Request::from_parts(parts, kube::client::Body::from(body));
        let answer = self.api_server.send(request).await.context("ask the API server")?;
        let (mut parts, body) = answer.into_parts();
        let body = Body::new(body);
        let Fate::Replace(from, to) = fate else { return Ok(Response::from_parts(parts, body)) };
        // It has another length now.
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.remove(header::TRANSFER_ENCODING);
        let body = if is_watch {
            // Event by event: the end may be minutes away.
            Body::from_stream(lines(body).map(move |line| Ok::<_, Infallible>(replaced(&line, from, to))))
        } else {
            Body::from(replaced(&to_bytes(body, usize::MAX).await.context("read the answer")?, from, to))
        };
        Ok(Response::from_parts(parts, body))
    }
}

/// The lines of a body, each with its end.
fn lines(body: Body) -> impl stream::Stream<Item = Vec<u8>> {
    let chunks = Box::pin(body.into_data_stream());
    stream::unfold((chunks, Vec::new()), |(mut chunks, mut read)| async move {
        loop {
            if let Some(end) = read.iter().position(|byte| *byte == b'\n') {
                let rest = read.split_off(end + 1);
                return Some((read, (chunks, rest)));
            }
            // A line that isn't complete when the connection ends is of no use to anybody.
            read.extend(chunks.try_next().await.ok()??);
        }
    })
}

fn replaced(text: &[u8], from: &str, to: &str) -> Bytes {
    String::from_utf8_lossy(text).replace(from, to).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_is_cut_into_lines_wherever_its_chunks_end() {
        let chunks = ["one\ntw", "o\n", "thr"].map(Ok::<_, Infallible>);
        let lines: Vec<_> = lines(Body::from_stream(stream::iter(chunks))).collect().await;
        assert_eq!(lines, [b"one\n".to_vec(), b"two\n".to_vec()]);
    }
}
