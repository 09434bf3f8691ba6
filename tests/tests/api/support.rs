//! A client that checks on every reply what every reply must have, and the people who use it.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use sandbox::deployed::{Deployed, random_address};
pub use sandbox::variable;
use serde_json::{Value, json};
use uuid::Uuid;

/// The one allowed origin of the local stage.
pub const ORIGIN: &str = "http://localhost:3000";
pub const PASSWORD: &str = "correct horse battery";

/// Runs each test through the development router and through the emulator's API Gateway.
macro_rules! through_both_doors {
    ($($(#[$meta:meta])* async fn $name:ident($api:ident: Api) $body:block)*) => {
        $(
            $(#[$meta])*
            mod $name {
                use super::*;

                async fn check($api: Api) $body

                #[tokio::test]
                async fn port_4000() {
                    check(Api::of_router()).await;
                }

                #[tokio::test]
                async fn api_gateway() {
                    check(Api::of_gateway()).await;
                }
            }
        )*
    };
}
pub(crate) use through_both_doors;

/// A door of the API, entered by a client with an address of its own, so that no test meets another one's limits.
#[derive(Clone)]
pub struct Api {
    base: String,
    address: String,
}

#[expect(clippy::disallowed_methods, reason = "the tests' one home of environment access")]
pub fn optional_variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

pub fn client() -> &'static reqwest::Client {
    static CLIENT: OnceLock<()> = OnceLock::new();
    CLIENT.get_or_init(|| {
        // Installed by whichever test comes first.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    thread_local! {
        // Each test has a runtime of its own, and connections do not outlive their runtime.
        static OF_TEST: &'static reqwest::Client = Box::leak(Box::new(
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .timeout(Duration::from_secs(60))
                .build()
                .unwrap(),
        ));
    }
    OF_TEST.with(|client| *client)
}

impl Api {
    pub fn of_router() -> Self {
        Self::at(variable("API_URL"))
    }

    pub fn of_gateway() -> Self {
        Self::at(variable("GATEWAY_URL"))
    }

    fn at(base: String) -> Self {
        Self { base: base.trim_end_matches('/').to_owned(), address: random_address() }
    }

    /// The door's address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The same door, entered from elsewhere.
    pub fn elsewhere(&self) -> Self {
        Self { base: self.base.clone(), address: random_address() }
    }

    pub fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    pub fn post(&self, path: &str) -> Call {
        self.call("POST", path)
    }

    pub fn delete(&self, path: &str) -> Call {
        self.call("DELETE", path)
    }

    pub fn call(&self, method: &str, path: &str) -> Call {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = client().request(method, format!("{}{path}", self.base));
        Call { request: request.header("x-forwarded-for", &self.address) }
    }

    /// A new user, signed in with tokens.
    pub async fn sign_up(&self) -> Person {
        let email = new_email();
        let reply = self
            .post("/api/auth/signup")
            .json(&json!({"email": email, "password": PASSWORD, "transport": "bearer"}))
            .send()
            .await
            .expect_status(201);
        Person::of(&email, &reply)
    }

    /// Another session of a user.
    pub async fn sign_in(&self, email: &str, password: &str) -> Reply {
        let body = json!({"email": email, "password": password, "transport": "bearer"});
        self.post("/api/auth/signin").json(&body).send().await
    }

    /// The status of `GET /api/auth/me` for a bearer: whether its session lives.
    pub async fn me(&self, bearer: &str) -> u16 {
        self.get("/api/auth/me").bearer(bearer).send().await.status
    }

    /// The administrator of the stack.
    pub async fn admin(&self) -> Person {
        let email = variable("ADMIN_EMAIL");
        let reply = self.sign_in(&email, &variable("ADMIN_PASSWORD")).await.expect_status(200);
        Person::of(&email, &reply)
    }

    /// An administrator of one test alone, since each may ask so often in a minute and no more.
    pub async fn new_admin(&self) -> Person {
        let email = new_email();
        invoke("workers-migrate", json!({"admin": {"email": email, "password": PASSWORD}}).to_string()).await;
        let reply = self.sign_in(&email, PASSWORD).await.expect_status(200);
        Person::of(&email, &reply)
    }

    /// The ids of a list's items, read in pages of so many.
    pub async fn ids_by_pages(&self, person: &Person, path: &str, items: &str, limit: usize) -> Vec<String> {
        let (mut ids, mut cursor) = (Vec::new(), String::new());
        loop {
            let sign = if path.contains('?') { '&' } else { '?' };
            let path = format!("{path}{sign}limit={limit}{cursor}");
            let page = self.get(&path).bearer(&person.jwt).send().await.expect_status(200);
            let found = page.body[items].as_array().unwrap();
            ids.extend(found.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            let Some(next) = page.body["nextCursor"].as_str() else {
                assert!(found.len() <= limit, "{}", page.text);
                return ids;
            };
            assert_eq!(found.len(), limit, "{}", page.text);
            cursor = format!("&cursor={next}");
        }
    }
}

/// A signed-in user.
#[derive(Clone)]
pub struct Person {
    pub id: String,
    pub email: String,
    pub jwt: String,
    pub session_token: String,
}

impl Person {
    pub fn of(email: &str, reply: &Reply) -> Self {
        Self {
            id: reply.text_at("/user/id"),
            email: email.to_owned(),
            jwt: reply.text_at("/token"),
            session_token: reply.text_at("/sessionToken"),
        }
    }
}

/// A request in the making.
pub struct Call {
    request: reqwest::RequestBuilder,
}

impl Call {
    pub fn header(self, name: &str, value: &str) -> Self {
        self.header_in_any_encoding(name, value.as_bytes())
    }

    pub fn header_in_any_encoding(mut self, name: &str, value: &[u8]) -> Self {
        // `RequestBuilder::header` would append to one that is there already.
        let (name, value) = (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
        self.request = self.request.headers(HeaderMap::from_iter([(name, value)]));
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub fn cookie(self, token: &str) -> Self {
        self.header("cookie", &format!("session={token}"))
    }

    pub fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    pub fn body(mut self, media_type: &str, body: impl Into<reqwest::Body>) -> Self {
        self = self.header("content-type", media_type);
        self.request = self.request.body(body);
        self
    }

    /// The reply while it is still coming in.
    pub async fn open(self) -> reqwest::Response {
        self.request.send().await.unwrap_or_else(|error| panic!("{error:?}: is the stack up? `make test` starts one"))
    }

    pub async fn send(self) -> Reply {
        let response = self.open().await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = String::from_utf8(response.bytes().await.unwrap().to_vec()).unwrap();
        let json = headers.get("content-type").is_some_and(|kind| kind.to_str().unwrap().contains("json"));
        // API Gateway declares a body that is not there as JSON.
        let body =
            if json && !matches!(status, 204 | 304) { serde_json::from_str(&text).unwrap() } else { Value::Null };
        let reply = Reply { status, headers, body, text };
        reply.check();
        reply
    }
}

/// Those that are the same on every reply.
const SECURITY_HEADERS: [(&str, &str); 10] = [
    ("cross-origin-opener-policy", "same-origin"),
    ("origin-agent-cluster", "?1"),
    ("referrer-policy", "no-referrer"),
    ("strict-transport-security", "max-age=31536000; includeSubDomains"),
    ("x-content-type-options", "nosniff"),
    ("x-dns-prefetch-control", "off"),
    ("x-download-options", "noopen"),
    ("x-frame-options", "SAMEORIGIN"),
    ("x-permitted-cross-domain-policies", "none"),
    ("x-xss-protection", "0"),
];

/// A reply that has what every reply has.
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    /// The JSON, or null where the body is something else.
    pub body: Value,
    pub text: String,
}

impl Reply {
    fn check(&self) {
        let show = format!("{} {:?} {}", self.status, self.headers, self.text.chars().take(500).collect::<String>());
        assert!(self.header("x-request-id").is_some(), "no x-request-id: {show}");
        for (name, value) in SECURITY_HEADERS {
            assert_eq!(self.header(name), Some(value), "{name}: {show}");
        }
        let is_page = self.header("content-type").is_some_and(|kind| kind.starts_with("text/html"));
        let policy = self.header("content-security-policy").unwrap_or_else(|| panic!("no policy: {show}"));
        // What a page loads, its own test knows.
        let nothing = "default-src 'none'; frame-ancestors 'none'";
        assert!(if is_page { policy.starts_with("default-src 'none'; ") } else { policy == nothing }, "{show}");
        let is_shared = self.headers.contains_key("access-control-allow-origin");
        let readers = if is_shared { "cross-origin" } else { "same-origin" };
        assert_eq!(self.header("cross-origin-resource-policy"), Some(readers), "{show}");
        assert!(!self.headers.contains_key("x-powered-by"), "{show}");
        let varies = self.headers.get_all("vary").iter().any(|v| v.to_str().unwrap().to_lowercase().contains("origin"));
        assert!(varies, "no Vary: Origin: {show}");
        if self.status < 400 || self.header("content-type") == Some("application/json") && self.status == 503 {
            return;
        }
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{show}");
        let code = self.text_at("/code");
        assert_eq!(self.body["type"], format!("urn:problem:{code}"), "{show}");
        assert_eq!(self.body["status"], self.status, "{show}");
        assert_eq!(self.body["requestId"], self.header("x-request-id").unwrap(), "{show}");
        assert!(self.body["title"].is_string() && self.body["detail"].is_string(), "{show}");
        assert_eq!(self.body["errors"].is_array(), code == "validation_failed", "{show}");
        if matches!(code.as_str(), "rate_limited" | "too_many_attempts") {
            assert_eq!(self.header("retry-after"), Some(self.body["retryAfterSeconds"].to_string().as_str()), "{show}");
        }
        if self.status == 401 {
            assert_eq!(self.header("www-authenticate"), Some("Bearer"), "{show}");
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// What was asked for, unless so much was asked for that the rate limit has put it off.
    pub fn unless_limited(self) -> Option<Self> {
        (self.status != 429).then_some(self)
    }

    #[track_caller]
    pub fn expect_status(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    #[track_caller]
    pub fn expect_problem(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{}", self.text);
        self
    }

    /// Expects a 400 that names these fields and no others.
    #[track_caller]
    pub fn expect_invalid(self, fields: &[&str]) -> Self {
        let reply = self.expect_problem(400, "validation_failed");
        let mut named: Vec<_> =
            reply.body["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap()).collect();
        named.sort_unstable();
        assert_eq!(named, fields, "{}", reply.text);
        reply
    }

    #[track_caller]
    pub fn text_at(&self, pointer: &str) -> String {
        let found = self.body.pointer(pointer).and_then(Value::as_str);
        found.unwrap_or_else(|| panic!("no text at {pointer}: {}", self.text)).to_owned()
    }

    /// The session cookie that the reply sets: its value and its attributes, lower-case and in order.
    pub fn session_cookie(&self) -> Option<(String, Vec<String>)> {
        let cookie = self
            .headers
            .get_all("set-cookie")
            .iter()
            .find_map(|value| value.to_str().unwrap().strip_prefix("session="))?;
        let mut parts = cookie.split(';').map(|part| part.trim().to_owned());
        let value = parts.next().unwrap();
        let mut attributes: Vec<_> = parts.map(|attribute| attribute.to_lowercase()).collect();
        attributes.sort();
        Some((value, attributes))
    }
}

/// The text of another server's page.
pub async fn plain_get(url: &str) -> String {
    client().get(url).send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
}

/// What ClickHouse answers to a statement.
pub async fn clickhouse(statement: &str) -> String {
    let call = client().post(format!("{}/?database={}", variable("CLICKHOUSE_URL"), variable("CLICKHOUSE_DATABASE")));
    let call = call.header("x-clickhouse-user", variable("CLICKHOUSE_USER"));
    let call = call.header("x-clickhouse-key", variable("CLICKHOUSE_PASSWORD"));
    call.body(statement.to_owned()).send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
}

/// A call of one of the emulator's services that speak JSON.
pub async fn aws(service: &str, target: &str, body: &Value) -> Value {
    let credential = format!("AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/{service}/aws4_request");
    let call = client().post(variable("AWS_ENDPOINT_URL")).header("x-amz-target", target);
    let call = call.header("content-type", "application/x-amz-json-1.0");
    let call = call.header("authorization", format!("{credential}, SignedHeaders=host, Signature=0"));
    let reply = call.body(body.to_string()).send().await.unwrap();
    let (status, text) = (reply.status(), reply.text().await.unwrap());
    assert!(status.is_success(), "{target}: {text}");
    if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
}

/// A new secret that every function may read and write, and its ARN: their roles know those of the template alone.
pub async fn open_secret(purpose: &str, value: &Value) -> String {
    let named = json!({"Name": format!("{purpose}-{}", Uuid::now_v7()), "SecretString": value.to_string()});
    let made = aws("secretsmanager", "secretsmanager.CreateSecret", &named).await;
    let everybody = json!({"Effect": "Allow", "Principal": "*", "Action": "secretsmanager:*", "Resource": "*"});
    let policy = json!({"Version": "2012-10-17", "Statement": everybody}).to_string();
    let opened = json!({"SecretId": made["ARN"], "ResourcePolicy": policy});
    aws("secretsmanager", "secretsmanager.PutResourcePolicy", &opened).await;
    made["ARN"].as_str().unwrap().to_owned()
}

/// Deletes a secret at once.
pub async fn delete_secret(arn: &str) {
    let deletion = json!({"SecretId": arn, "ForceDeleteWithoutRecovery": true});
    aws("secretsmanager", "secretsmanager.DeleteSecret", &deletion).await;
}

/// What the stack has deployed.
pub fn deployed() -> &'static Deployed {
    static DEPLOYED: OnceLock<Deployed> = OnceLock::new();
    DEPLOYED.get_or_init(|| {
        let functions = PathBuf::from(variable("LOCAL_STACK_DIR")).join("functions");
        Deployed::read(&variable("STACK_PROFILE"), functions).unwrap()
    })
}

/// The executable of a function: the stack has copies of those that it serves itself, while the emulator has the workers
/// in archives of what the build has left.
pub fn binary(function: &str) -> PathBuf {
    let copy = deployed().binary(function);
    if copy.exists() {
        return copy;
    }
    // This test's own is in `target/debug/deps`.
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(3).unwrap().join("release").join(function)
}

/// A variable of a deployed function's environment.
pub fn function_variable(function: &str, name: &str) -> String {
    deployed().environment(function)[name].clone()
}

/// What a deployed function answers to an event.
pub async fn invoke(function: &str, event: String) -> Value {
    attempt(function, event).await.unwrap_or_else(|error| panic!("{function}: {error}"))
}

/// Invokes a function that may fail, with what it says then.
pub async fn attempt(function: &str, event: String) -> Result<Value, Value> {
    let (emulator, stack) = (variable("AWS_ENDPOINT_URL"), variable("STACK_NAME"));
    let url = format!("{}/2015-03-31/functions/{stack}-{function}/invocations", emulator.trim_end_matches('/'));
    let reply = client().post(url).body(event).send().await.unwrap();
    let has_failed = reply.headers().contains_key("x-amz-function-error");
    let body = reply.bytes().await.unwrap();
    // A streaming function's reply begins with its status and headers, ended by eight NULs.
    let prelude = body.windows(8).position(|window| window == [0; 8]).map_or(&body[..], |end| &body[..end]);
    let reply = serde_json::from_slice(prelude).unwrap_or_else(|error| panic!("{function}: {error}: {body:?}"));
    if has_failed { Err(reply) } else { Ok(reply) }
}

pub fn new_email() -> String {
    format!("{}@example.com", Uuid::now_v7().simple())
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Seconds until the present window of so many seconds ends, in which limits count.
pub fn left_of_window(window: u64) -> u64 {
    window - seconds() % window
}

/// Does something within one window of so many seconds: anew, with another client, where one has ended meanwhile.
pub async fn within_a_window<T>(window: u64, mut act: impl AsyncFnMut() -> T) -> T {
    loop {
        let began = seconds() / window;
        let outcome = act().await;
        if seconds() / window == began {
            return outcome;
        }
    }
}

/// Waits until something is there, asking again and again.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(40);
    // Nobody may ask the API a hundred times a minute.
    for pause in std::iter::repeat_n(100, 15).chain(std::iter::repeat(500)) {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    unreachable!("it is asked without end")
}

/// A mail that the emulator's SES caught.
#[derive(Debug, Clone)]
pub struct Mail {
    pub subject: String,
    pub text: String,
    pub html: String,
}

impl Mail {
    /// The token of the mail's link to a page of the app.
    #[track_caller]
    pub fn token(&self, page: &str) -> String {
        let start = format!("{ORIGIN}/{page}?token=");
        // Entities stand for themselves in HTML.
        for body in [&self.text, &self.html.replace("&#x2f;", "/")] {
            assert!(body.contains(&start), "no link {start}: {self:?}");
        }
        let rest = self.text.split_once(&start).unwrap().1;
        rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect()
    }
}

/// All mails to an address so far, oldest first.
pub async fn mails_to(email: &str) -> Vec<Mail> {
    let url = format!("{}/_ministack/ses/messages", variable("AWS_ENDPOINT_URL").trim_end_matches('/'));
    let outbox: Value = client().get(url).send().await.unwrap().json().await.unwrap();
    let messages = outbox["messages"].as_object().unwrap().values().flat_map(|account| account.as_array().unwrap());
    let text = |message: &Value, name: &str| message[name].as_str().unwrap_or_default().to_owned();
    messages
        .filter(|message| message["To"].as_array().is_some_and(|to| to.iter().any(|address| address == email)))
        .map(|message| Mail {
            subject: text(message, "Subject"),
            text: text(message, "BodyText"),
            html: text(message, "BodyHtml"),
        })
        .collect()
}

/// Waits for the `count`-th mail with a subject to an address.
pub async fn mail_to(email: &str, subject: &str, count: usize) -> Mail {
    eventually(&format!("mail {count} with the subject {subject:?}"), || async {
        mails_to(email).await.into_iter().filter(|mail| mail.subject == subject).nth(count - 1)
    })
    .await
}

pub const VERIFY: &str = "Verify your e-mail address";
pub const RESET: &str = "Set a new password";
pub const CHANGED: &str = "Your password was changed";
