//! A relay before ClickHouse that adds up the rows that were read for the queries through it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Relays until it is dropped.
pub struct Relay {
    /// Where it listens.
    pub url: String,
    rows: Arc<AtomicU64>,
    _stop: oneshot::Sender<()>,
}

impl Relay {
    /// To the server at the URL.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start(upstream: &str) -> Result<Self, String> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        listener.set_nonblocking(true).map_err(|error| error.to_string())?;
        let url = format!("http://{}", listener.local_addr().map_err(|error| error.to_string())?);
        let client = reqwest::Client::builder().tcp_nodelay(true).build().map_err(|error| error.to_string())?;
        let rows = Arc::new(AtomicU64::new(0));
        let upstream = Upstream { client, url: upstream.to_owned(), rows: rows.clone() };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let (stop, stopped) = oneshot::channel();
        std::thread::spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, upstream) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { url, rows, _stop: stop })
    }

    /// Rows that were read since the start.
    #[must_use]
    pub fn rows_read(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Upstream {
    client: reqwest::Client,
    url: String,
    rows: Arc<AtomicU64>,
}

#[expect(clippy::disallowed_methods, reason = "this is a server, not a function")]
async fn accept(listener: std::net::TcpListener, upstream: Upstream) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let upstream = upstream.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let upstream = upstream.clone();
                async move { Ok::<_, Infallible>(upstream.ask(request).await) }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Upstream {
    async fn ask(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.relay(request).await.unwrap_or_else(|error| {
            let mut response = Response::new(Full::from(error.to_string()));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        })
    }

    async fn relay(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error>> {
        let (head, body) = request.into_parts();
        // A server that has begun its reply cannot say any more how much it has read.
        let separator = if head.uri.query().is_some() { '&' } else { '?' };
        let url = format!("{}{}{separator}wait_end_of_query=1", self.url, head.uri);
        let mut headers = head.headers;
        for own in ["host", "content-length", "transfer-encoding"] {
            headers.remove(own);
        }
        let call = self.client.request(head.method, url).headers(headers).body(body.collect().await?.to_bytes());
        let reply = call.send().await?;
        let summary = reply.headers().get("x-clickhouse-summary").and_then(|summary| summary.to_str().ok());
        let summary: serde_json::Value = summary.and_then(|s| serde_json::from_str(s).ok()).unwrap_or_default();
        let rows = summary["read_rows"].as_str().and_then(|rows| rows.parse().ok()).unwrap_or_default();
        self.rows.fetch_add(rows, Ordering::Relaxed);
        let mut response = Response::builder().status(reply.status());
        if let Some(code) = reply.headers().get("x-clickhouse-exception-code") {
            response = response.header("x-clickhouse-exception-code", code);
        }
        Ok(response.body(Full::from(reply.bytes().await?))?)
    }
}
