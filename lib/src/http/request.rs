//! A request as handlers see it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method};
use lambda_http::RequestExt;
use lambda_http::request::RequestContext;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::auth::account::Visit;
use crate::auth::role::Role;
use crate::clock;
use crate::error::{Code, Error, Result};
use crate::http::credentials::Caller;
use crate::http::headers;
use crate::http::validate::{Field, Fields, FromFields, Invalid, Raw, both};
use crate::runtime;
use crate::telemetry::trace::TraceContext;

/// A request, with what the runner found out about it.
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path without the stage.
    pub path: String,
    /// What addresses of this API have before their path: the stage, unless the API has a domain of its own.
    pub base_path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The decoded query parameters, in order.
    pub query: Vec<(String, String)>,
    /// The body's bytes, decoded where the gateway encoded them.
    pub body: Bytes,
    /// The client's address as far as it can be trusted.
    pub ip: IpAddr,
    /// The id that goes into the log and the reply.
    pub id: String,
    /// The trace that the request belongs to.
    pub trace: TraceContext,
    /// When the gateway received it: how long a function takes to start makes no request a later one.
    pub arrived_at: OffsetDateTime,
    /// Time until Lambda's time-out, as of the arrival of the event.
    pub time_left: Duration,
    parameters: Vec<(String, String)>,
    pub(crate) caller: Result<Option<Caller>>,
}

impl Request {
    /// Reads API Gateway's event.
    #[must_use]
    pub fn from_lambda(event: lambda_http::Request, trusted_proxies: usize) -> Self {
        let context = event.request_context_ref();
        let reported = match context {
            Some(RequestContext::ApiGatewayV1(context)) => context.identity.source_ip.clone(),
            Some(RequestContext::ApiGatewayV2(context)) => context.http.source_ip.clone(),
            _ => None,
        };
        let gateway_id = match context {
            Some(RequestContext::ApiGatewayV1(context)) => context.request_id.clone(),
            _ => None,
        };
        let arrived_at = match context {
            Some(RequestContext::ApiGatewayV1(context)) if context.request_time_epoch > 0 => {
                clock::from_millis(context.request_time_epoch)
            }
            // The local stack's router says it in whole seconds, and HAProxy, which stands before it, to the point.
            _ => headers::text(event.headers(), "x-request-start")
                .and_then(|millis| millis.parse().ok())
                .map_or_else(clock::now, clock::from_millis),
        };
        let deadline = event.lambda_context_ref().map(lambda_http::Context::deadline);
        let time_left = runtime::time_left(deadline, SystemTime::now());
        let parameters = event
            .path_parameters_ref()
            .map(|map| map.iter().map(|(name, value)| (name.to_owned(), decode(value))).collect())
            .unwrap_or_default();
        let query = event
            .query_string_parameters_ref()
            .map(|map| map.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
            .unwrap_or_default();
        let path = event.raw_http_path().to_owned();
        let base_path = match context {
            Some(RequestContext::ApiGatewayV1(context)) => {
                base_path(context.path.as_deref().unwrap_or_default(), &path)
            }
            _ => String::new(),
        };
        let (parts, body) = event.into_parts();
        let headers = parts.headers;
        let ip = client_ip(reported.as_deref(), &headers, trusted_proxies);
        let trace = TraceContext::continue_or_begin(headers::text(&headers, "traceparent"));
        let id = request_id(&headers).or(gateway_id).unwrap_or_else(|| Uuid::now_v7().to_string());
        let body = match body {
            lambda_http::Body::Text(text) => Bytes::from(text),
            lambda_http::Body::Binary(bytes) => Bytes::from(bytes),
            _ => Bytes::new(),
        };
        Self {
            method: parts.method,
            path,
            base_path,
            headers,
            query,
            body,
            ip,
            id,
            trace,
            arrived_at,
            time_left,
            parameters,
            caller: Ok(None),
        }
    }

    /// A header's text, if it is there and is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        headers::text(&self.headers, name)
    }

    /// Who is calling.
    ///
    /// # Errors
    /// 401 without a valid credential.
    pub fn user(&self) -> Result<&Caller> {
        match &self.caller {
            Ok(Some(caller)) => Ok(caller),
            Ok(None) => Err(Error::unauthenticated()),
            Err(error) => Err(Error::new(error.code(), error.detail().to_owned())),
        }
    }

    /// Who is calling, for routes that take anybody.
    #[must_use]
    pub fn user_if_any(&self) -> Option<&Caller> {
        self.caller.as_ref().ok().and_then(Option::as_ref)
    }

    /// The admin who is calling.
    ///
    /// # Errors
    /// 401 without a valid credential, 403 with a user's.
    pub fn admin(&self) -> Result<&Caller> {
        let caller = self.user()?;
        match caller.session.role {
            Role::Admin => Ok(caller),
            Role::User => Err(Error::new(Code::Forbidden, "This is for admins.")),
        }
    }

    /// The JSON body as a request type.
    ///
    /// # Errors
    /// 415 for another media type, 400 `invalid_json`, or a 400 that names every bad field.
    #[track_caller]
    pub fn json<T: FromFields>(&self) -> Result<T> {
        let object = self.json_object()?;
        let mut fields = Fields::body(&object);
        let parsed = T::from_fields(&mut fields);
        fields.finish(parsed)
    }

    /// The JSON body as an object; no body at all is one without members.
    ///
    /// # Errors
    /// 415 for another media type, 400 `invalid_json`.
    #[track_caller]
    pub fn json_object(&self) -> Result<Map<String, Value>> {
        if self.body.is_empty() {
            return Ok(Map::new());
        }
        let media_type = self.header("content-type").unwrap_or_default();
        let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if essence != "application/json" {
            return Err(Error::new(Code::UnsupportedMediaType, "Send `Content-Type: application/json`."));
        }
        match serde_json::from_slice(&self.body) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(_) => Err(Error::new(Code::InvalidJson, "The body must be a JSON object.")),
            Err(_) => Err(Error::new(Code::InvalidJson, "The body must be JSON in UTF-8.")),
        }
    }

    /// The query parameters as a request type.
    ///
    /// # Errors
    /// A 400 that names every bad parameter.
    #[track_caller]
    pub fn query<T: FromFields>(&self) -> Result<T> {
        let mut fields = Fields::query(&self.query);
        let parsed = T::from_fields(&mut fields);
        fields.finish(parsed)
    }

    /// A path parameter and the query parameters as a request type.
    ///
    /// # Errors
    /// A 400 that names every bad parameter; when the route has no such path parameter.
    #[track_caller]
    pub fn query_within<P: Field, T: FromFields>(&self, parameter: &str) -> Result<(P, T)> {
        let place = P::parse(Raw::Text(self.parameter(parameter)?));
        let place = place.map_err(|Invalid { code, message }| Error::invalid_field(parameter, code, message));
        both(place, self.query())
    }

    /// A path parameter's text, decoded.
    ///
    /// # Errors
    /// When the route has no such parameter.
    pub fn parameter(&self, name: &str) -> Result<&str> {
        let found = self.parameters.iter().find(|(key, _)| key == name);
        found
            .map(|(_, value)| value.as_str())
            .ok_or_else(|| Error::internal(format!("the route has no parameter {name}")))
    }

    /// All path parameters, decoded.
    pub(crate) fn parameters(&self) -> &[(String, String)] {
        &self.parameters
    }

    /// The path parameter `id`; what is no id names no object.
    ///
    /// # Errors
    /// 404 when it is not a UUID.
    pub fn id_parameter(&self, what: &str) -> Result<Uuid> {
        Uuid::try_parse(self.parameter("id")?).map_err(|_| Error::not_found(what))
    }

    /// From where, when and within which trace the request came.
    #[must_use]
    pub fn visit(&self) -> Visit {
        let country = self.header("cloudfront-viewer-country");
        Visit {
            ip: self.ip,
            device: self.header("user-agent").unwrap_or_default().to_owned(),
            country: country.filter(|c| c.len() == 2 && c.bytes().all(|b| b.is_ascii_uppercase())).map(str::to_owned),
            at: self.arrived_at,
            trace: self.trace,
        }
    }
}

/// The path that was asked for, without what the function knows of it.
fn base_path(whole: &str, path: &str) -> String {
    whole.trim_end_matches('/').strip_suffix(path.trim_end_matches('/')).unwrap_or_default().to_owned()
}

/// The address that the gateway reports, or behind so many trusted proxies, the one that the outermost of them
/// reports in `X-Forwarded-For`. Entries further left are whatever the client wrote. API Gateway adds its peer, which
/// it also reports, as the last one: that is no proxy's word.
fn client_ip(reported: Option<&str>, headers: &HeaderMap, trusted_proxies: usize) -> IpAddr {
    let reported = reported.and_then(|ip| ip.parse().ok());
    let forwarded = || -> Option<IpAddr> {
        let mut entries: Vec<&str> = headers
            .get_all("x-forwarded-for")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .collect();
        if reported.is_some() && entries.last().and_then(|entry| entry.parse().ok()) == reported {
            entries.pop();
        }
        entries.len().checked_sub(trusted_proxies).and_then(|index| entries.get(index))?.parse().ok()
    };
    let ip = if trusted_proxies > 0 { forwarded().or(reported) } else { reported };
    ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// The client's own request id, if it is fit for a log.
fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers::text(headers, "x-request-id")?;
    let good = (8..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b));
    good.then(|| id.to_owned())
}

fn decode(value: &str) -> String {
    percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (http::HeaderName::from_static(n), v.parse().unwrap())).collect()
    }

    #[test]
    fn addresses_begin_with_the_stage_where_the_domain_is_not_ours() {
        for (whole, path, base) in
            [("/v1/", "/", "/v1"), ("/v1", "/", "/v1"), ("/", "/", ""), ("/v1/docs", "/docs", "/v1"), ("", "/docs", "")]
        {
            assert_eq!(base_path(whole, path), base, "{whole} {path}");
        }
    }

    #[test]
    fn trusts_forwarded_addresses_only_as_far_as_the_proxies_go() {
        let forged = headers(&[("x-forwarded-for", "1.1.1.1, 2.2.2.2, 3.3.3.3")]);
        let ip = |reported, proxies| client_ip(reported, &forged, proxies).to_string();
        assert_eq!(ip(Some("9.9.9.9"), 0), "9.9.9.9");
        assert_eq!(ip(None, 1), "3.3.3.3");
        assert_eq!(ip(None, 2), "2.2.2.2");
        assert_eq!(ip(Some("9.9.9.9"), 4), "9.9.9.9");
        assert_eq!(ip(None, 0), "0.0.0.0");
    }

    #[test]
    fn a_gateways_note_of_its_peer_is_no_proxys() {
        let ip = |forwarded: &str, proxies| {
            client_ip(Some("9.9.9.9"), &headers(&[("x-forwarded-for", forwarded)]), proxies).to_string()
        };
        assert_eq!(ip("2.2.2.2, 9.9.9.9", 1), "2.2.2.2");
        assert_eq!(ip("2.2.2.2, 3.3.3.3, 9.9.9.9", 2), "2.2.2.2");
        assert_eq!(ip("2.2.2.2, 9.9.9.9", 0), "9.9.9.9");
        // What the client wrote stays left of what the proxy says, whatever it is.
        for forged in ["1.1.1.1, ", "9.9.9.9, ", "1.1.1.1, 9.9.9.9, ", ", ", "unknown, "] {
            assert_eq!(ip(&format!("{forged}2.2.2.2, 9.9.9.9"), 1), "2.2.2.2", "{forged}");
            assert_eq!(ip(&format!("{forged}2.2.2.2"), 1), "2.2.2.2", "by a gateway that adds nothing: {forged}");
        }
        // Past the proxy, or with fewer proxies than were announced.
        assert_eq!(ip("9.9.9.9", 1), "9.9.9.9");
        assert_eq!(ip("2.2.2.2, 9.9.9.9", 2), "9.9.9.9");
    }

    #[test]
    fn arrives_when_the_gateway_received_it() {
        let event = include_str!("../../../events/chat-stop-stream.json");
        let request = Request::from_lambda(lambda_http::request::from_str(event).unwrap(), 0);
        assert_eq!(clock::rfc3339(request.arrived_at), "2026-01-15T09:30:00.000Z");
    }

    #[test]
    fn takes_over_only_harmless_request_ids() {
        assert_eq!(request_id(&headers(&[("x-request-id", "abc-12345")])).as_deref(), Some("abc-12345"));
        for bad in ["short", "has space in it", "{\"json\":1}", &"a".repeat(129)] {
            assert_eq!(request_id(&headers(&[("x-request-id", bad)])), None, "{bad}");
        }
    }
}
