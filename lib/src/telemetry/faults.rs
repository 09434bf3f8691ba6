//! Faults for an error tracker: Sentry's envelopes (<https://develop.sentry.dev/sdk/data-model/envelopes/>), where
//! `SENTRY_DSN` names a project of Sentry or of anything that speaks its protocol.
//!
//! A fault says where it happened and to which request, and never why: a cause may quote what a person wrote. The
//! request id leads to the log line that has the cause. Faults go out behind the reply and nobody waits for them;
//! those of a storm that do not get their turn are dropped.

use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use http::Uri;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::background;
use crate::clock;
use crate::config;
use crate::error::{Error, Result};
use crate::outbound::Reporter;
use crate::telemetry::log::Ids;
use crate::telemetry::trace::TraceContext;

/// Faults under way at most.
const AT_ONCE: usize = 16;

/// What went wrong, in words of the code alone.
pub(crate) struct Fault<'a> {
    pub(crate) function: &'a str,
    /// Method and route template; none where no client waits.
    pub(crate) route: Option<String>,
    /// The request's, the invocation's or the message's id.
    pub(crate) request_id: &'a str,
    pub(crate) trace: Option<&'a TraceContext>,
    pub(crate) code: &'a str,
    /// `file:line`.
    pub(crate) location: &'a str,
    pub(crate) panicked: bool,
}

/// Where faults go.
struct Tracker {
    /// Whose faults these are.
    function: String,
    host: String,
    path: String,
    key: String,
    /// Made for the first fault: loading certificates is not for every init.
    reporter: OnceLock<Reporter>,
    under_way: AtomicUsize,
}

static TRACKER: OnceLock<Tracker> = OnceLock::new();
static PANICKED_AT: Mutex<Option<String>> = Mutex::new(None);

/// Reads `SENTRY_DSN`, for the faults of a function.
///
/// # Errors
/// When `SENTRY_DSN` is malformed.
pub(crate) fn init(function: &str) -> Result<()> {
    if let Some(dsn) = config::optional("SENTRY_DSN") {
        let tracker = Tracker::at(&dsn, function)
            .ok_or_else(|| Error::internal("environment variable SENTRY_DSN is malformed"))?;
        TRACKER.get_or_init(|| tracker);
    }
    Ok(())
}

/// Remembers from now on where code panics, and makes a line of the log of it.
pub(crate) fn watch_panics() {
    panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(|at| format!("{}:{}", at.file(), at.line()));
        tracing::error!(error.location = location, "the code panicked");
        *PANICKED_AT.lock().unwrap_or_else(PoisonError::into_inner) = location;
    }));
}

/// Where the code panicked last, once.
pub(crate) fn panicked_at() -> Option<String> {
    PANICKED_AT.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Reports a fault in the background, where a tracker is configured.
pub(crate) fn report(fault: &Fault<'_>) {
    if let Some(tracker) = TRACKER.get() {
        tracker.report(fault);
    }
}

/// Reports what is answered to nobody: work behind the reply that panics, messages that go back to their queue.
pub(crate) fn report_unanswered(error: &Error) {
    if let Some(tracker) = TRACKER.get() {
        let ids = Ids::current();
        tracker.report(&Fault {
            function: &tracker.function,
            route: None,
            request_id: ids.as_ref().map_or("", Ids::request),
            trace: None,
            code: error.code().as_str(),
            location: &error.location(),
            panicked: error.is_panic(),
        });
    }
}

impl Tracker {
    /// The tracker that a DSN names: `https://key@host/path/project`.
    fn at(dsn: &str, function: &str) -> Option<Self> {
        let uri: Uri = dsn.trim().parse().ok()?;
        let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme))?;
        let (credentials, host) = uri.authority()?.as_str().rsplit_once('@')?;
        // Old DSNs have a secret after the key, which is not sent any more.
        let key = credentials.split(':').next().filter(|key| key.bytes().all(|byte| byte.is_ascii_alphanumeric()))?;
        let (prefix, project) = uri.path().trim_end_matches('/').rsplit_once('/')?;
        if key.is_empty() || host.is_empty() || project.is_empty() {
            return None;
        }
        Some(Self {
            function: function.to_owned(),
            host: format!("{scheme}://{host}"),
            path: format!("{prefix}/api/{project}/envelope/"),
            key: key.to_owned(),
            reporter: OnceLock::new(),
            under_way: AtomicUsize::new(0),
        })
    }

    fn report(&'static self, fault: &Fault<'_>) {
        let reporter = match self.reporter() {
            Ok(reporter) if reporter.is_resting() => return,
            Ok(reporter) => reporter,
            Err(error) => return tracing::warn!(error.cause = %error, "the way to the error tracker is closed"),
        };
        if self.under_way.fetch_add(1, Ordering::AcqRel) >= AT_ONCE {
            self.under_way.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let envelope = fault.envelope();
        background::spawn(async move {
            if let Err(error) = reporter.send(envelope).await {
                tracing::warn!(error.cause = %error, "a fault was not sent to the error tracker");
            }
            self.under_way.fetch_sub(1, Ordering::AcqRel);
        });
    }

    fn reporter(&self) -> Result<&Reporter> {
        if let Some(reporter) = self.reporter.get() {
            return Ok(reporter);
        }
        let client = concat!("ai-chat-backend/", env!("CARGO_PKG_VERSION"));
        let authorization = format!("Sentry sentry_version=7, sentry_client={client}, sentry_key={}", self.key);
        let headers = vec![
            ("content-type", "application/x-sentry-envelope".to_owned()),
            ("user-agent", client.to_owned()),
            ("x-sentry-auth", authorization),
        ];
        let reporter = Reporter::to(&self.host, self.path.clone(), headers)?;
        Ok(self.reporter.get_or_init(|| reporter))
    }
}

impl Fault<'_> {
    /// Three lines of JSON: the envelope's header, the item's, and the event.
    fn envelope(&self) -> String {
        let id = Uuid::now_v7().simple().to_string();
        let now = clock::rfc3339(clock::now());
        let event = self.event(&id, &now).to_string();
        let header = json!({ "event_id": id, "sent_at": now });
        let item = json!({ "type": "event", "content_type": "application/json", "length": event.len() });
        format!("{header}\n{item}\n{event}\n")
    }

    fn event(&self, id: &str, now: &str) -> Value {
        let (file, line) = self.location.rsplit_once(':').unwrap_or((self.location, "0"));
        let what = self.route.as_deref().unwrap_or(self.function);
        let mut event = json!({
            "event_id": id,
            "timestamp": now,
            "platform": "other",
            "level": if self.panicked { "fatal" } else { "error" },
            "release": concat!("ai-chat-backend@", env!("CARGO_PKG_VERSION")),
            "environment": config::optional("STAGE"),
            "transaction": what,
            // The same fault of the same function is one issue, whatever the route's path.
            "fingerprint": [self.function, self.code, file, line],
            "tags": { "function": self.function, "code": self.code, "request_id": self.request_id },
            "exception": { "values": [{
                "type": if self.panicked { "panic" } else { self.code },
                "value": what,
                "mechanism": { "type": "generic", "handled": !self.panicked },
                "stacktrace": { "frames": [{
                    "filename": file,
                    "lineno": line.parse::<u32>().unwrap_or_default(),
                    "in_app": true,
                }] },
            }] },
        });
        if let Some(trace) = self.trace {
            event["contexts"]["trace"] = json!({ "trace_id": trace.trace_id(), "span_id": trace.span_id() });
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::telemetry::log;

    fn fault(panicked: bool) -> Fault<'static> {
        Fault {
            function: "chat-send",
            route: Some("POST /api/chat".to_owned()),
            request_id: "req-1",
            trace: None,
            code: "internal",
            location: "lib/src/chat/exchange.rs:12",
            panicked,
        }
    }

    fn tracker(dsn: &str) -> &'static Tracker {
        Box::leak(Box::new(Tracker::at(dsn, "chat-send").unwrap()))
    }

    #[test]
    fn a_dsn_names_host_path_and_key() {
        let at = |dsn: &str| Tracker::at(dsn, "").map(|tracker| (tracker.host, tracker.path, tracker.key));
        let expected = |host: &str, path: &str| Some((host.to_owned(), path.to_owned(), "abc1".to_owned()));
        assert_eq!(at("https://abc1@o1.example.com/42"), expected("https://o1.example.com", "/api/42/envelope/"));
        assert_eq!(at("https://abc1:old@h/42/"), expected("https://h", "/api/42/envelope/"));
        assert_eq!(at("http://abc1@h:9000/sub/42"), expected("http://h:9000", "/sub/api/42/envelope/"));
        for wrong in
            ["", "abc", "https://h/42", "https://@h/42", "https://abc1@h", "ftp://abc1@h/42", "https://a b@h/4"]
        {
            assert!(Tracker::at(wrong, "").is_none(), "{wrong}");
        }
    }

    /// Takes one envelope: its head and its body.
    fn receive(receiver: &TcpListener) -> (String, String) {
        let (stream, _) = receiver.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            reader.read_line(&mut head).unwrap();
        }
        let length = head.to_ascii_lowercase();
        let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        reader.get_mut().write_all(answer).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    #[tokio::test]
    async fn a_panic_behind_the_reply_is_reported_with_the_request() {
        let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
        let dsn = format!("http://abc1@{}/42", receiver.local_addr().unwrap());
        // The process's own: what other tests panic about comes here, too.
        TRACKER.get_or_init(|| Tracker::at(&dsn, "chat-send").unwrap());
        let (told, arrived) = mpsc::channel();
        std::thread::spawn(move || {
            loop {
                let (_, body) = receive(&receiver);
                if body.contains("req-behind") {
                    return told.send(body);
                }
            }
        });
        log::within(Some(Ids::new("req-behind", None)), async {
            background::spawn(async { panic!("with what a person wrote") });
        })
        .await;
        background::drained().await;
        let body = arrived.recv_timeout(Duration::from_secs(10)).expect("a report");
        assert!(body.contains(r#""type":"panic""#) && body.contains(r#""function":"chat-send""#), "{body}");
        assert!(!body.contains("a person"), "{body}");
    }

    #[tokio::test]
    async fn a_fault_arrives_as_an_envelope() {
        let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = receiver.local_addr().unwrap();
        let served = std::thread::spawn(move || receive(&receiver));
        tracker(&format!("http://abc1@{address}/42")).report(&fault(true));
        background::drained().await;
        let (head, body) = served.join().unwrap();
        assert!(head.starts_with("POST /api/42/envelope/ HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("sentry_key=abc1"), "{head}");
        let lines: Vec<&str> = body.lines().collect();
        let [header, item, event] = lines[..] else { panic!("{body}") };
        let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        assert_eq!(parse(item)["length"], event.len());
        assert_eq!(parse(header)["event_id"], parse(event)["event_id"]);
        let event = parse(event);
        assert_eq!(event["level"], "fatal");
        assert_eq!(event["tags"], json!({ "function": "chat-send", "code": "internal", "request_id": "req-1" }));
        let exception = &event["exception"]["values"][0];
        assert_eq!(exception["value"], "POST /api/chat");
        let frame = json!({ "filename": "lib/src/chat/exchange.rs", "lineno": 12, "in_app": true });
        assert_eq!(exception["stacktrace"]["frames"], json!([frame]));
    }

    #[tokio::test]
    async fn a_tracker_that_hangs_is_given_up_and_then_left_alone() {
        let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
        let tracker = tracker(&format!("http://abc1@{}/42", receiver.local_addr().unwrap()));
        let started = Instant::now();
        for _ in 0..100 {
            tracker.report(&fault(false));
        }
        assert!(started.elapsed() < Duration::from_secs(1), "a report was waited for");
        background::drained().await;
        assert!(tracker.reporter().unwrap().is_resting());
        assert_eq!(tracker.under_way.load(Ordering::Acquire), 0);
        assert!(started.elapsed() < Reporter::TIMEOUT * 3, "{:?}", started.elapsed());
    }

    #[test]
    fn a_panic_is_told_with_its_place() {
        let usual = panic::take_hook();
        watch_panics();
        let panic = panic::catch_unwind(|| panic!("with what a person wrote")).unwrap_err();
        // Other tests say by it why they fail.
        panic::set_hook(usual);
        let error = Error::panicked(&*panic);
        assert!(error.location().starts_with("lib/src/telemetry/faults.rs:"), "{}", error.location());
        assert!(error.cause_chain().unwrap().contains("with what a person wrote"));
        assert!(error.is_panic());
    }
}
