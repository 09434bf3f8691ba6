//! DynamoDB or Postgres has done what it was told and its answer is lost on the way: the call that is repeated must
//! find its own work, and not take it for somebody else's.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::auth::sessions::list;
use crate::billing::stores;
use crate::support::*;

/// What a function has for its work, where that does not matter.
const SOME_TIME: Duration = Duration::from_secs(30);
pub const LOST: &[u8] = b"HTTP/1.1 500 Lost\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";

/// The URL of a way to AWS: the answer to each call is made of its text and of how it is passed on.
pub fn way_to_aws(answer: impl Fn(&str, &dyn Fn() -> Vec<u8>) -> Vec<u8> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, answer) = (client.unwrap(), answer.clone());
            std::thread::spawn(move || serve(client, &*answer));
        }
    });
    url
}

/// Answers one request of a connection.
fn serve(mut client: TcpStream, answer: impl Fn(&str, &dyn Fn() -> Vec<u8>) -> Vec<u8>) -> Option<()> {
    let request = request_of(&mut client)?;
    let pass_on = || {
        let upstream = variable("AWS_ENDPOINT_URL");
        let mut aws = TcpStream::connect(upstream.trim_start_matches("http://").trim_end_matches('/')).unwrap();
        aws.write_all(&request).unwrap();
        let mut answer = Vec::new();
        aws.read_to_end(&mut answer).unwrap();
        answer
    };
    client.write_all(&answer(&String::from_utf8_lossy(&request), &pass_on)).ok()
}

/// An answer of one's own.
pub fn own_answer(body: &Value) -> Vec<u8> {
    let (head, body) = ("HTTP/1.1 200 OK\r\ncontent-type: application/json", body.to_string());
    format!("{head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).into_bytes()
}

/// A deployed function whose calls go a way.
pub fn start_by(way: &str, function: &str) -> Sandbox {
    let mut environment = deployed().environment(function);
    environment.insert("AWS_ENDPOINT_URL".to_owned(), way.to_owned());
    Sandbox::start(&binary(function), &environment).unwrap()
}

/// Its reply.
pub fn ask_by(way: &str, function: &str, event: &Value) -> Value {
    start_by(way, function).invoke(event).unwrap().payload
}

/// A way to AWS on which calls that contain these words go wrong.
pub struct Lossy {
    url: String,
    lost: Arc<AtomicBool>,
}

impl Lossy {
    /// Loses the answer to the first of them.
    fn on(words: &'static str) -> Self {
        Self::start(words, false)
    }

    /// Passes none of them on.
    pub fn refusing(words: &'static str) -> Self {
        Self::start(words, true)
    }

    fn start(words: &'static str, refuses: bool) -> Self {
        let lost = Arc::new(AtomicBool::new(false));
        let told = lost.clone();
        let url = way_to_aws(move |call, pass_on| {
            if !call.contains(words) {
                return pass_on();
            }
            let answer = if refuses { Vec::new() } else { pass_on() };
            let is_first = !told.swap(true, Ordering::SeqCst);
            if refuses || is_first { LOST.to_vec() } else { answer }
        });
        Self { url, lost }
    }

    /// The reply of a deployed function whose calls go this way.
    pub fn ask(&self, function: &str, event: &Value) -> Value {
        let reply = ask_by(&self.url, function, event);
        assert!(self.lost.load(Ordering::SeqCst), "no answer was lost: {reply}");
        reply
    }
}

/// Head and body, with the wish that the connection ends.
fn request_of(client: &mut TcpStream) -> Option<Vec<u8>> {
    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let lengths = head.lines().filter_map(|line| line.split_once(':'));
            let mut lengths = lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length = lengths.next().map_or(0, |(_, length)| length.trim().parse().unwrap());
            if body.len() >= length {
                return Some(text.replacen("\r\n", "\r\nconnection: close\r\n", 1).into_bytes());
            }
        }
        let read = client.read(&mut piece).ok().filter(|read| *read > 0)?;
        request.extend_from_slice(&piece[..read]);
    }
}

/// What becomes of a connection over a statement whose answer is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The statement is passed on, and the connection ends.
    CutOff,
    /// Neither side hears of the other again.
    Silence,
}

/// The URL of a way to Postgres on which answers to some statements are lost.
pub fn lossy_database(is_lost: impl Fn(&str) -> bool + Send + Sync + 'static, loss: Loss) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = variable("DATABASE_URL");
    let (credentials, rest) = url.split_once('@').unwrap();
    let (server, database) = rest.split_once('/').unwrap();
    let lossy = format!("{credentials}@{}/{database}", listener.local_addr().unwrap());
    let server = server.to_owned();
    let is_lost = Arc::new(is_lost);
    std::thread::spawn(move || {
        for function in listener.incoming() {
            let (function, postgres) = (function.unwrap(), TcpStream::connect(&server).unwrap());
            let is_lost = is_lost.clone();
            std::thread::spawn(move || relay_statements(function, postgres, &*is_lost, loss));
        }
    });
    lossy
}

/// Statements that have these words among their values, for so long from the first one on.
fn with_words(words: String, lasting: Duration) -> impl Fn(&str) -> bool + Send + Sync + 'static {
    let began = OnceLock::<Instant>::new();
    move |statement| statement.contains(&words) && began.get_or_init(Instant::now).elapsed() < lasting
}

/// Passes on what both sides say. An answer that is to be cut off is waited for.
fn relay_statements(mut function: TcpStream, mut postgres: TcpStream, is_lost: impl Fn(&str) -> bool, loss: Loss) {
    let said = Arc::new(AtomicBool::new(false));
    let (mut answers, mut back, has_said) =
        (postgres.try_clone().unwrap(), function.try_clone().unwrap(), said.clone());
    std::thread::spawn(move || {
        let mut piece = vec![0; 1 << 16];
        while let Ok(read @ 1..) = answers.read(&mut piece) {
            if has_said.load(Ordering::SeqCst) && loss == Loss::Silence {
                continue;
            }
            if has_said.load(Ordering::SeqCst) || back.write_all(&piece[..read]).is_err() {
                break;
            }
        }
        for side in [&answers, &back] {
            let _ = side.shutdown(Shutdown::Both);
        }
    });
    let mut piece = vec![0; 1 << 16];
    while let Ok(read @ 1..) = function.read(&mut piece) {
        if is_lost(&String::from_utf8_lossy(&piece[..read])) {
            said.store(true, Ordering::SeqCst);
        }
        if said.load(Ordering::SeqCst) && loss == Loss::Silence {
            continue;
        }
        if postgres.write_all(&piece[..read]).is_err() {
            break;
        }
    }
    let _ = postgres.shutdown(Shutdown::Both);
}

/// The reply of a deployed function, within its time, that loses its connection to Postgres over some statements.
async fn ask_cut_off(
    function: &str,
    event: &Value,
    is_lost: impl Fn(&str) -> bool + Send + Sync + 'static,
    time: Duration,
) -> Value {
    let (mut cut_off, secret) = start_on(lossy_database(is_lost, Loss::CutOff), function).await;
    let reply = cut_off.invoke_within(event, time).unwrap().payload;
    delete_secret(&secret).await;
    reply
}

/// A deployed function with a database of its own, and the secret that says so.
pub async fn start_on(database: String, function: &str) -> (Sandbox, String) {
    let secret = open_secret("lost-answers", &json!({"url": database})).await;
    let mut environment = deployed().environment(function);
    environment.insert("DATABASE_SECRET_ARN".to_owned(), secret.clone());
    (Sandbox::start(&binary(function), &environment).unwrap(), secret)
}

/// The reply of a function, within its time, whose database falls silent over statements with these words, or how it
/// failed; and the end of its log once the sandbox is gone.
async fn ask_in_silence(
    function: &str,
    event: &Value,
    words: &'static str,
    time: Duration,
) -> (Result<Value, String>, String) {
    let silent = lossy_database(move |statement| statement.contains(words), Loss::Silence);
    let (mut sandbox, secret) = start_on(silent, function).await;
    let reply = sandbox.invoke_unfinished(event, time).map(|reply| reply.payload);
    let ended = eventually("the sandbox to end", || async {
        let log = sandbox.log().join("\n");
        log.contains("the function could not run").then_some(log)
    });
    let ended = ended.await;
    delete_secret(&secret).await;
    (reply, ended)
}

/// A question under a key.
fn keyed_question(person: &Person, body: &Value) -> Value {
    let mut event = Deployed::event("chat-send", &random_address(), Some(body), Some(&person.jwt)).unwrap();
    event["headers"]["Idempotency-Key"] = json!("unknown");
    event["multiValueHeaders"]["Idempotency-Key"] = json!(["unknown"]);
    event
}

async fn conversations(api: &Api, person: &Person) -> Vec<Value> {
    let list = api.get("/api/chat/conversations").bearer(&person.jwt).send().await.expect_status(200);
    list.body["conversations"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_knows_to_be_stored_is_not_billed_twice() {
    let api = Api::of_router();
    for stream in [false, true] {
        let (person, message) = (api.sign_up().await, format!("Lost {}", Uuid::now_v7()));
        let event = keyed_question(&person, &json!({"message": message, "stream": stream}));
        // Of this, 15 s are kept back, which are nearly all for storing the answer.
        let time = Duration::from_secs(16);
        let reply = ask_cut_off("chat-send", &event, with_words(message, Duration::MAX), time).await;
        // A stream has begun by then, and ends with an error.
        assert_eq!(reply["statusCode"], if stream { 200 } else { 503 }, "{reply}");
        let stored = conversations(&api, &person).await;
        assert_eq!((stored.len(), &stored[0]["messageCount"]), (1, &json!(2)), "stream: {stream}");

        let again = deployed().start("chat-send").unwrap().invoke(&event).unwrap().payload;
        assert_eq!(again["statusCode"], 200, "{again}");
        assert_eq!(conversations(&api, &person).await, stored, "stream: {stream}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_falls_silent_is_told_in_time() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let list = Deployed::event("chat-list-conversations", &random_address(), None, Some(&person.jwt)).unwrap();
    let question = keyed_question(&person, &json!({"message": "Hello"}));
    for (function, event, words, time) in [
        ("chat-list-conversations", &list, "FROM conversations", Duration::from_secs(6)),
        ("chat-send", &question, "quota_reserve", Duration::from_secs(330)),
    ] {
        let (reply, log) = ask_in_silence(function, event, words, time).await;
        let reply = reply.unwrap();
        assert_eq!(reply["statusCode"], 503, "{reply}");
        let told: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let told = told.iter().find(|line| line["message"] == "the request failed");
        assert_eq!(told.unwrap()["error.code"], "unavailable", "{log}");
    }
    // The key is free at once.
    let again = deployed().start("chat-send").unwrap().invoke(&question).unwrap().payload;
    assert_eq!(again["statusCode"], 200, "{again}");
    assert_eq!(conversations(&api, &person).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_told_of_a_database_that_falls_silent() {
    let time = Duration::from_secs(6);
    let (outcome, log) = ask_in_silence("workers-sweep-quota", &json!({}), "FROM quota_reservations", time).await;
    assert!(outcome.is_err() && log.contains("the invocation failed"), "{outcome:?} {log}");
}

/// What becomes a dead letter without being counted would be missing from the total for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_noted_as_a_dead_letter_comes_again() {
    let mut delivery: Value = serde_json::from_str(include_str!("../../../events/workers-ingest.json")).unwrap();
    delivery["Records"].as_array_mut().unwrap().truncate(1);
    let id = format!("unnoted-{}", Uuid::now_v7());
    delivery["Records"][0]["messageId"] = json!(id);
    delivery["Records"][0]["body"] = json!("no event");
    let time = Duration::from_secs(20);
    let reply = ask_cut_off("workers-ingest", &delivery, |said| said.contains("INSERT INTO dead_letters"), time).await;
    assert_eq!(reply["batchItemFailures"], json!([{"itemIdentifier": id}]));
    let mut worker = Sandbox::start(&binary("workers-ingest"), &deployed().environment("workers-ingest")).unwrap();
    assert_eq!(worker.invoke(&delivery).unwrap().payload["batchItemFailures"], json!([]));
}

/// A database that changes its server is away for half a minute.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_waits_for_a_database_that_is_away() {
    let api = Api::of_router();
    let (person, message) = (api.sign_up().await, format!("Away {}", Uuid::now_v7()));
    let (event, away) = (keyed_question(&person, &json!({"message": message})), Duration::from_secs(6));
    let reply = ask_cut_off("chat-send", &event, with_words(message, away), SOME_TIME).await;
    assert_eq!(reply["statusCode"], 200, "{reply}");
    let stored = conversations(&api, &person).await;
    assert_eq!((stored.len(), &stored[0]["messageCount"]), (1, &json!(2)));
}

/// Two first questions under one name make one conversation.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_joins_another_conversation_is_told_to_be_there() {
    let api = Api::of_router();
    let (person, message) = (api.sign_up().await, format!("AIMOCK:slow {}", Uuid::now_v7()));
    let body = |text: &str| json!({"id": "one", "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]}]});
    let event = keyed_question(&person, &body(&message));
    // The first statement finds that the conversation is there, the second one stores, and the third would do it again.
    let stores = AtomicUsize::new(0);
    let is_lost = move |statement: &str| statement.contains(&message) && stores.fetch_add(1, Ordering::SeqCst) == 1;
    let first = async {
        let database = variable("DATABASE_URL");
        eventually("the other answer to be under way", || async {
            let mut database = PgConnection::connect(&database).await.unwrap();
            let held = "SELECT count(*) FROM quota_reservations WHERE user_id = $1::uuid";
            let held: i64 = sqlx::query_scalar(held).bind(&person.id).fetch_one(&mut database).await.unwrap();
            (held == 1).then_some(())
        })
        .await;
        api.post("/api/chat").bearer(&person.jwt).json(&body("Hello")).send().await.expect_status(200);
    };
    let joins = tokio::task::spawn_blocking({
        let (event, runtime) = (event.clone(), tokio::runtime::Handle::current());
        move || runtime.block_on(ask_cut_off("chat-send", &event, is_lost, SOME_TIME))
    });
    let (joined, ()) = tokio::join!(joins, first);
    assert_eq!(joined.unwrap()["statusCode"], 200);
    let stored = conversations(&api, &person).await;
    assert_eq!((stored.len(), &stored[0]["messageCount"]), (1, &json!(4)));
    let again = deployed().start("chat-send").unwrap().invoke(&event).unwrap().payload;
    assert_eq!(again["statusCode"], 200, "{again}");
}

/// A call that succeeds in the end is no failure to be told of.
#[tokio::test]
async fn a_repeated_call_is_no_error_in_the_log() {
    let event = Deployed::event("billing-list-plans", &random_address(), None, None).unwrap();
    let way = Lossy::on("api#ip#");
    let mut function = start_by(&way.url, "billing-list-plans");
    assert_eq!(function.invoke(&event).unwrap().payload["statusCode"], 200);
    let log = function.log();
    assert!(way.lost.load(Ordering::SeqCst) && !log.is_empty() && !log.join("").contains("ERROR"), "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_started_all_the_same() {
    let account = json!({"email": new_email(), "password": PASSWORD});
    let event = Deployed::event("auth-signup", &random_address(), Some(&account), None).unwrap();
    let reply = Lossy::on("successor_used").ask("auth-signup", &event);
    assert_eq!(reply["statusCode"], 201, "{reply}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_time_token_that_was_used_up_counts() {
    let person = Api::of_router().sign_up().await;
    let token = mail_to(&person.email, VERIFY, 1).await.token("verify-email");
    let body = json!({"token": token});
    let event = Deployed::event("auth-verify-email", &random_address(), Some(&body), None).unwrap();
    let reply = Lossy::on("used_by").ask("auth-verify-email", &event);
    assert_eq!(reply["statusCode"], 200, "{reply}");
    let again = Api::of_router().post("/api/auth/verify-email").json(&body).send().await;
    again.expect_problem(400, "invalid_token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_good_until_its_work_is_known_to_be_done() {
    let api = Api::of_router();
    for (page, event) in [("verify-email", "user.email_verified"), ("reset-password", "user.password_reset")] {
        // The connection is lost before the commit, and over it.
        for words in [event, "COMMIT"] {
            let person = api.sign_up().await;
            let mut body = json!({});
            let mail = if page == "reset-password" {
                body["password"] = json!("quite another password");
                let asked = api.post("/api/auth/forgot-password").json(&json!({"email": person.email})).send().await;
                asked.expect_status(200);
                RESET
            } else {
                VERIFY
            };
            body["token"] = json!(mail_to(&person.email, mail, 1).await.token(page));
            let function = format!("auth-{page}");
            let event = Deployed::event(&function, &random_address(), Some(&body), None).unwrap();
            let reply = ask_cut_off(&function, &event, with_words(words.to_owned(), Duration::MAX), SOME_TIME).await;
            assert_eq!(reply["statusCode"], 503, "{reply}");
            let path = format!("/api/auth/{page}");
            let again = || api.post(&path).json(&body).send();
            again().await.expect_status(200);
            again().await.expect_problem(400, "invalid_token");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_a_key_is_not_taken_for_its_own_predecessor() {
    let person = Api::of_router().sign_up().await;
    let body = json!({"message": "Hello"});
    let mut event = Deployed::event("chat-send", &random_address(), Some(&body), Some(&person.jwt)).unwrap();
    event["headers"]["Idempotency-Key"] = json!("lost");
    event["multiValueHeaders"]["Idempotency-Key"] = json!(["lost"]);
    let reply = Lossy::on("ends_at").ask("chat-send", &event);
    assert_eq!(reply["statusCode"], 200, "{reply}");
}

/// A key under which nothing runs is free for the next try, whatever became of the calls that claim it or let it go.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_let_go_behind_the_reply() {
    let api = Api::of_router();
    let (answered, unknown) =
        (json!({"message": "Hello"}), json!({"message": "Hello", "conversationId": Uuid::now_v7()}));
    for (words, is_done, body, first, again) in [
        // The claim is there, and not known to be.
        ("ends_at", true, &answered, 503, 200),
        ("DeleteItem", false, &unknown, 404, 404),
        ("\"parts\"", false, &answered, 200, 200),
        ("\"parts\"", true, &answered, 200, 200),
    ] {
        let person = api.sign_up().await;
        let event = keyed_question(&person, body);
        let lost = Arc::new(AtomicUsize::new(0));
        let counted = lost.clone();
        let way = way_to_aws(move |call, pass_on| {
            // As often as a call is tried.
            if !call.contains(words) || counted.fetch_add(1, Ordering::SeqCst) >= 3 {
                return pass_on();
            }
            if is_done {
                pass_on();
            }
            LOST.to_vec()
        });
        let reply = ask_by(&way, "chat-send", &event);
        assert_eq!(reply["statusCode"], first, "{words}: {reply}");
        assert!(lost.load(Ordering::SeqCst) >= 3, "{words}");
        let stored = conversations(&api, &person).await;
        let reply = deployed().start("chat-send").unwrap().invoke(&event).unwrap().payload;
        assert_eq!(reply["statusCode"], again, "{words}: {reply}");
        if first == 200 {
            assert_eq!(conversations(&api, &person).await, stored, "{words}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_revoked_counts_as_revoked() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let other = Person::of(&person.email, &api.sign_in(&person.email, PASSWORD).await);
    let sessions = list(&api, &person.jwt).await;
    let id = &sessions.iter().find(|session| session["current"] == false).unwrap()["id"];
    let mut event = Deployed::event("auth-revoke-session", &random_address(), None, Some(&person.jwt)).unwrap();
    event["pathParameters"]["id"] = id.clone();
    let reply = Lossy::on("DeleteItem").ask("auth-revoke-session", &event);
    assert_eq!(reply["statusCode"], 204, "{reply}");
    assert_eq!(api.me(&other.jwt).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_that_is_counted_in_part_is_taken_back() {
    let (person, address) = (Api::of_router().sign_up().await, random_address());
    let body = json!({"email": person.email, "password": PASSWORD});
    let event = Deployed::event("auth-signin", &address, Some(&body), None).unwrap();
    let one_counter_fails = Lossy::refusing("signin-ip#");
    // As many as the counter of the account and the address admits.
    for _ in 0..5 {
        let reply = one_counter_fails.ask("auth-signin", &event);
        assert!(reply["statusCode"].as_u64().unwrap() >= 500, "{reply}");
    }
    let environment = deployed().environment("auth-signin");
    let mut sandbox = Sandbox::start(&deployed().binary("auth-signin"), &environment).unwrap();
    let reply = sandbox.invoke(&event).unwrap().payload;
    assert_eq!(reply["statusCode"], 200, "{reply}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_no_store_can_count_or_vouch_for_is_not_let_in() {
    let person = Api::of_router().sign_up().await;
    for (function, words, bearer) in [
        ("billing-list-plans", "api#ip#", None),
        ("auth-me", "api#user#", Some(&person.jwt)),
        ("auth-me", "api#user#", Some(&person.session_token)),
        ("auth-me", "GetItem", Some(&person.jwt)),
        ("auth-me", "GetItem", Some(&person.session_token)),
    ] {
        let event = Deployed::event(function, &random_address(), None, bearer.map(String::as_str)).unwrap();
        let reply = Lossy::refusing(words).ask(function, &event);
        let problem: Value = serde_json::from_str(reply["body"].as_str().unwrap()).unwrap();
        assert_eq!((&reply["statusCode"], &problem["code"]), (&json!(503), &json!("unavailable")), "{words}: {reply}");
    }
}

/// What a queue has taken waits for no other queue: the relay would send it again.
#[tokio::test]
async fn a_slow_queue_leaves_nothing_of_another_one_in_the_outbox() {
    let (reached, is_reached) = mpsc::channel();
    let way = way_to_aws(move |call, pass_on| {
        if !call.contains("SendMessageBatch") || !call.contains("user.signup") {
            return pass_on();
        }
        let _ = reached.send(call.to_owned());
        std::thread::sleep(Duration::from_secs(5));
        LOST.to_vec()
    });
    let body = json!({"email": new_email(), "password": PASSWORD});
    let event = Deployed::event("auth-signup", &random_address(), Some(&body), None).unwrap();
    let asked = std::thread::spawn(move || ask_by(&way, "auth-signup", &event));
    let call = is_reached.recv_timeout(Duration::from_secs(20)).unwrap();
    let subject = call.split_once("subject").unwrap().1.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let left = "SELECT to_jsonb(string_agg(DISTINCT queue, ',')) FROM outbox WHERE body LIKE '%' || $1 || '%'";
    assert_eq!(stores::row(left, &subject[..36]).await, "events");
    assert_eq!(asked.join().unwrap()["statusCode"], 201);
}

/// What is told behind a reply holds a sandbox for as little as it is worth, and is not lost.
#[tokio::test]
async fn a_silent_queue_leaves_the_sandbox_free() {
    let way = way_to_aws(|call, pass_on| {
        if !call.contains("SendMessageBatch") {
            return pass_on();
        }
        std::thread::sleep(Duration::from_secs(30));
        LOST.to_vec()
    });
    let mut function = start_by(&way, "auth-signup");
    let mut ask = |body: &Value| {
        let event = Deployed::event("auth-signup", &random_address(), Some(body), None).unwrap();
        let started = Instant::now();
        let reply = function.invoke(&event).unwrap();
        (reply.payload, started.elapsed() - reply.took)
    };
    let (reply, held) = ask(&json!({"email": new_email(), "password": PASSWORD}));
    assert_eq!(reply["statusCode"], 201, "{reply}");
    assert!(held < Duration::from_secs(7), "{held:?}");
    let body: Value = serde_json::from_str(reply["body"].as_str().unwrap()).unwrap();
    let left = "SELECT to_jsonb(string_agg(queue, ',' ORDER BY queue)) FROM outbox WHERE body LIKE '%' || $1 || '%'";
    assert_eq!(stores::row(left, body["user"]["id"].as_str().unwrap()).await, "events,mail");
    // The queue has failed a moment ago: a record is not worth another wait.
    let (reply, held) = ask(&json!({}));
    assert_eq!(reply["statusCode"], 400, "{reply}");
    assert!(held < Duration::from_secs(2), "{held:?}");
}
