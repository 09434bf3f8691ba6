//! What a handler gives back.

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Serialize;

use crate::error::Result;
use crate::http::headers::set;

/// The pieces of a streamed body.
pub type Chunks = BoxStream<'static, Bytes>;

/// A reply's body.
pub enum Body {
    /// All of it.
    Whole(Bytes),
    /// Piece by piece, in a function that streams.
    Streamed(Chunks),
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::Whole(text.into())
    }
}

/// A reply.
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The headers, without those that every reply has.
    pub headers: HeaderMap,
    /// The body.
    pub body: Body,
}

impl Response {
    /// A reply without a body.
    #[must_use]
    pub fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: Body::Whole(Bytes::new()) }
    }

    /// JSON that no cache may keep: most replies carry a person's data.
    ///
    /// # Errors
    /// When the value cannot be written as JSON.
    pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Self> {
        Ok(Self::json_text(status, serde_json::to_string(value)?))
    }

    /// JSON with status 200.
    ///
    /// # Errors
    /// When the value cannot be written as JSON.
    pub fn ok<T: Serialize>(value: &T) -> Result<Self> {
        Self::json(StatusCode::OK, value)
    }

    /// JSON with status 201.
    ///
    /// # Errors
    /// When the value cannot be written as JSON.
    pub fn created<T: Serialize>(value: &T) -> Result<Self> {
        Self::json(StatusCode::CREATED, value)
    }

    /// JSON with status 202.
    ///
    /// # Errors
    /// When the value cannot be written as JSON.
    pub fn accepted<T: Serialize>(value: &T) -> Result<Self> {
        Self::json(StatusCode::ACCEPTED, value)
    }

    /// 204.
    #[must_use]
    pub fn no_content() -> Self {
        Self::new(StatusCode::NO_CONTENT).no_store()
    }

    /// JSON that is text already.
    #[must_use]
    pub fn json_text(status: StatusCode, text: String) -> Self {
        Self::text(status, "application/json", text).no_store()
    }

    /// Text of a media type.
    #[must_use]
    pub fn text(status: StatusCode, media_type: &'static str, text: impl Into<Bytes>) -> Self {
        let mut response = Self::new(status);
        response.body = Body::Whole(text.into());
        response.headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        response
    }

    /// A body that is sent piece by piece.
    #[must_use]
    pub fn streamed(media_type: &'static str, chunks: Chunks) -> Self {
        let mut response = Self::new(StatusCode::OK);
        response.body = Body::Streamed(chunks);
        response.headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        response.no_store()
    }

    /// Forbids caches to keep the reply.
    #[must_use]
    pub fn no_store(mut self) -> Self {
        self.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self
    }

    /// Sets a header, over one of the same name.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        set(&mut self.headers, name, value);
        self
    }

    /// Adds a `Set-Cookie` header.
    #[must_use]
    pub fn with_cookie(mut self, cookie: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(cookie) {
            self.headers.append(http::header::SET_COOKIE, value);
        }
        self
    }
}
