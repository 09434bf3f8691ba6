//! Answers invocations by streams.
//!
//! The runtime's own client leaves Nagle's algorithm on: whatever follows the first packet of a reply then waits
//! for its acknowledgement, 40 ms. So replies go out here, through a client without it, and what is ready at the
//! same time goes out together.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::{CONTENT_TYPE, SET_COOKIE, TRANSFER_ENCODING};
use http::{HeaderValue, Request};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper_util::client::legacy::connect::HttpConnector;
use lambda_http::RequestExt;
use lambda_http::request::LambdaRequest;
use lambda_runtime::tower::layer::layer_fn;
use lambda_runtime::{Diagnostic, LambdaEvent, LambdaInvocation, MetadataPrelude, Runtime, service_fn};
use lambda_runtime_api_client::body::Body as ApiBody;
use lambda_runtime_api_client::{Client, build_request};
use serde::de::IgnoredAny;

use crate::error::{Error, Result};
use crate::http::response::{Body, Response};
use crate::runtime;

/// Ends the prelude of a streamed reply.
const END_OF_PRELUDE: &[u8] = &[0; 8];
/// Chunks that are sent together at most.
const TOGETHER: usize = 32;
/// Set by newer platforms, which refuse a reply that comes without it too late.
const INVOCATION_ID: &str = "lambda-runtime-invocation-id";

type Failure = lambda_runtime::Error;

/// Runs a function until its sandbox ends.
pub(super) async fn run<F>(handle: impl Fn(lambda_http::Request) -> F + Clone + Send + 'static) -> Result<()>
where
    F: Future<Output = Response> + Send + 'static,
{
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    let client = Client::builder().with_connector(tcp).build().map_err(Error::internal)?;
    let client: &'static Client = Box::leak(Box::new(client));
    // The layer answers by itself, so nothing ever gets to what it is laid around.
    let beneath = service_fn(|_: LambdaEvent<IgnoredAny>| async { Ok::<_, Failure>(()) });
    let answers = layer_fn(move |_| {
        let handle = handle.clone();
        service_fn(move |invocation| answer(client, invocation, handle.clone()))
    });
    runtime::answer_invocations(Runtime::new(beneath).layer(answers)).await
}

async fn answer<F>(
    client: &Client,
    invocation: LambdaInvocation,
    handle: impl Fn(lambda_http::Request) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = Response>,
{
    let base = format!("/2018-06-01/runtime/invocation/{}", invocation.context.request_id);
    let id = invocation.parts.headers.get(INVOCATION_ID).cloned();
    let mut request = match serde_json::from_slice::<LambdaRequest>(&invocation.body) {
        Ok(event) => {
            let event = lambda_http::Request::from(event).with_lambda_context(invocation.context);
            reply(&base, handle(event).await)?
        }
        Err(error) => {
            tracing::error!(error.cause = %error, "the event is none of API Gateway's");
            let diagnostic = Diagnostic { error_type: "Event".to_owned(), error_message: error.to_string() };
            build_request().method("POST").uri(format!("{base}/error")).body(serde_json::to_vec(&diagnostic)?.into())?
        }
    };
    if let Some(id) = id {
        request.headers_mut().insert(INVOCATION_ID, id);
    }
    let status = client.call(request).await?.status();
    if !status.is_success() {
        tracing::error!(http.status = status.as_u16(), "the runtime did not take the reply");
    }
    Ok(())
}

/// Status and headers, then the body's chunks as they come.
fn reply(base: &str, response: Response) -> Result<Request<ApiBody>, Failure> {
    let mut headers = response.headers;
    let cookies = headers.get_all(SET_COOKIE).iter().filter_map(|cookie| cookie.to_str().ok().map(str::to_owned));
    let cookies = cookies.collect();
    headers.remove(SET_COOKIE);
    headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/octet-stream"));
    let prelude = serde_json::to_vec(&MetadataPrelude { status_code: response.status, headers, cookies })?;
    let chunks = match response.body {
        Body::Whole(bytes) => stream::iter([bytes]).boxed(),
        Body::Streamed(chunks) => chunks,
    };
    // In frames of their own, as cargo-lambda wants them; one packet all the same.
    let head = stream::iter([Bytes::from(prelude), Bytes::from_static(END_OF_PRELUDE)]);
    let frames = head.chain(chunks.ready_chunks(TOGETHER).map(joined));
    let frames = frames.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    Ok(build_request()
        .method("POST")
        .uri(format!("{base}/response"))
        .header(TRANSFER_ENCODING, "chunked")
        .header("lambda-runtime-function-response-mode", "streaming")
        .header(CONTENT_TYPE, "application/vnd.awslambda.http-integration-response")
        .body(ApiBody::new(StreamBody::new(frames)))?)
}

fn joined(mut chunks: Vec<Bytes>) -> Bytes {
    if chunks.len() == 1 { chunks.swap_remove(0) } else { chunks.concat().into() }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use http_body_util::BodyExt;

    use super::*;

    fn body_of(response: Response) -> Vec<Bytes> {
        let request = reply("/invocation/id", response).unwrap();
        assert_eq!(request.uri(), "/invocation/id/response");
        let mut body = request.into_body();
        let mut frames = Vec::new();
        while let Some(frame) = futures_util::FutureExt::now_or_never(body.frame()).unwrap() {
            frames.push(frame.unwrap().into_data().unwrap());
        }
        frames
    }

    #[test]
    fn status_and_headers_come_first_and_what_is_ready_together() {
        let mut response = Response::new(StatusCode::TOO_MANY_REQUESTS).with("set-cookie", "a=b");
        response.body = Body::Streamed(stream::iter(["one ", "two"].map(Bytes::from)).boxed());
        let frames = body_of(response);
        let prelude: serde_json::Value = serde_json::from_slice(&frames[0]).unwrap();
        assert_eq!((&prelude["statusCode"], &prelude["cookies"][0]), (&429.into(), &"a=b".into()));
        assert_eq!(frames[1..], [END_OF_PRELUDE, b"one two"]);
    }

    #[test]
    fn a_whole_body_is_one_piece() {
        let frames = body_of(Response::text(StatusCode::OK, "text/plain", "all"));
        assert_eq!(frames[1..], [END_OF_PRELUDE, b"all"]);
    }
}
