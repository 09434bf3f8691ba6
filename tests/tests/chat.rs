//! Money and words that nobody may lose: the quota under many requests at once, answers that break off, readers
//! who leave, functions that die. Real Postgres, providers that play a part.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::future::join_all;
use lib::auth::account::Visit;
use lib::billing::plan::Plan;
use lib::chat::answer::{Ask, Chat, Reply};
use lib::chat::catalogue::{Catalogue, ProviderId};
use lib::chat::conversation::{Change, Conversations, Effort, Filter};
use lib::chat::exchange::ConversationRef;
use lib::chat::provider::attempt::{Providers, RetryPolicy};
use lib::chat::provider::{Call, Cause, Failure, FinishReason, Piece, Pieces, Provider, Usage};
use lib::chat::quota;
use lib::chat::search;
use lib::chat::stream::Protocol;
use lib::clock;
use lib::error::Code;
use lib::http::page::{Cursor, Limit};
use lib::http::validate::{Field, Raw};
use lib::store::postgres::Database;
use lib::telemetry::trace::TraceContext;
use sandbox::plans::{Question, Talker};
use sandbox::variable;
use sqlx::AssertSqlSafe;
use tokio::sync::Notify;
use uuid::Uuid;

fn database() -> Database {
    Database::connect_lazy(&variable("DATABASE_URL")).unwrap()
}

/// What a provider has done, for comparing with what was stored.
#[derive(Default)]
struct Journal {
    calls: AtomicUsize,
    completed: AtomicI64,
    broken: AtomicI64,
    rejected: AtomicI64,
    tokens: AtomicI64,
}

/// A provider whose every call is one of a few parts, in turn.
struct Player {
    journal: Arc<Journal>,
    parts: &'static [Part],
}

#[derive(Clone, Copy)]
enum Part {
    /// Answers with this usage, after a moment.
    Answer(i64, i64),
    /// Fails before the first token.
    Refuse(Cause),
    /// Says something and breaks.
    Break,
    /// Ends without a word.
    Nothing,
}

impl Provider for Player {
    fn start<'a>(&'a self, _call: &'a Call) -> BoxFuture<'a, Result<Pieces, Failure>> {
        let part = self.parts[self.journal.calls.fetch_add(1, Ordering::SeqCst) % self.parts.len()];
        let text = |text: &str| Ok(Piece::Text(text.to_owned()));
        Box::pin(async move {
            let pieces = match part {
                Part::Refuse(cause) => {
                    self.journal.rejected.fetch_add(i64::from(cause == Cause::Rejected), Ordering::SeqCst);
                    return Err(Failure::new(cause, "played"));
                }
                Part::Nothing => Vec::new(),
                Part::Break => {
                    self.journal.broken.fetch_add(1, Ordering::SeqCst);
                    vec![text("Half an "), Err(Failure::new(Cause::Broken, "played"))]
                }
                Part::Answer(input_tokens, output_tokens) => {
                    self.journal.completed.fetch_add(1, Ordering::SeqCst);
                    self.journal.tokens.fetch_add(input_tokens + output_tokens, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    vec![
                        text("A whole "),
                        text("answer."),
                        Ok(Piece::Finish(FinishReason::Stop)),
                        Ok(Piece::Usage(Usage { input_tokens, output_tokens, ..Usage::default() })),
                    ]
                }
            };
            Ok(Box::pin(futures_util::stream::iter(pieces)) as Pieces)
        })
    }
}

fn chat(journal: &Arc<Journal>, parts: &'static [Part]) -> &'static Chat {
    let player = Player { journal: journal.clone(), parts };
    let retry = RetryPolicy { backoff: Duration::from_millis(1), ..RetryPolicy::default() };
    let providers = Providers::new(vec![(ProviderId::Openai, Box::new(player))], retry);
    Box::leak(Box::new(Chat::new(database(), providers, None)))
}

async fn new_user(used: i64) -> Uuid {
    let id = Uuid::now_v7();
    let (pool, email) = (database().pool().clone(), format!("{}@example.com", id.simple()));
    sqlx::query("INSERT INTO users (id, email, password_hash) VALUES ($1, $2, 'none')")
        .bind(id)
        .bind(email)
        .execute(&pool)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO quota_periods (user_id, period, used)
         VALUES ($1, date_trunc('month', now() AT TIME ZONE 'UTC')::date, $2)",
    )
    .bind(id)
    .bind(used)
    .execute(&pool)
    .await
    .unwrap();
    id
}

fn ask(user_id: Uuid, message: &str) -> Ask {
    Ask {
        user_id,
        message: Some(message.to_owned()),
        again: false,
        keeps: Vec::new(),
        follows: Vec::new(),
        name: None,
        replaced: None,
        position: None,
        conversation: ConversationRef::New,
        provider: None,
        model: None,
        system_prompt: None,
        temperature: None,
        max_tokens: Some(200),
        streamed: false,
        request_id: None,
    }
}

fn visit() -> Visit {
    Visit {
        ip: [127, 0, 0, 1].into(),
        device: String::new(),
        country: None,
        at: clock::now(),
        trace: TraceContext::begin(),
    }
}

const TIME: Duration = Duration::from_secs(60);

/// Used and reserved tokens of the month, or of two where one ends meanwhile.
async fn month(user: Uuid) -> (i64, i64) {
    let sums = "SELECT sum(used)::bigint, sum(reserved)::bigint FROM quota_periods WHERE user_id = $1";
    sqlx::query_as(sums).bind(user).fetch_one(database().pool()).await.unwrap()
}

async fn count(user: Uuid, what: &str) -> i64 {
    let statement = match what {
        "reservations" => "SELECT count(*) FROM quota_reservations WHERE user_id = $1",
        "ledger" => "SELECT count(*) FROM usage_ledger WHERE user_id = $1",
        "ledger tokens" => {
            "SELECT coalesce(sum(input_tokens + output_tokens), 0)::bigint FROM usage_ledger WHERE user_id = $1"
        }
        "questions" => {
            "SELECT count(*) FROM messages m JOIN conversations c ON c.id = m.conversation_id
                        WHERE c.user_id = $1 AND m.role = 'user'"
        }
        "answers" => {
            "SELECT count(*) FROM messages m JOIN conversations c ON c.id = m.conversation_id
                      WHERE c.user_id = $1 AND m.role = 'assistant'"
        }
        "conversations" => "SELECT count(*) FROM conversations WHERE user_id = $1",
        _ => unreachable!("{what}"),
    };
    sqlx::query_scalar(statement).bind(user).fetch_one(database().pool()).await.unwrap()
}

/// Events of a type about the user that wait in the outbox: nothing here sends them.
async fn told(user: Uuid, kind: &str) -> i64 {
    let statement = "SELECT count(*) FROM outbox WHERE body::jsonb ->> 'subject' = $1 AND body::jsonb ->> 'type' = $2";
    sqlx::query_scalar(statement).bind(user.to_string()).bind(kind).fetch_one(database().pool()).await.unwrap()
}

#[tokio::test]
async fn a_hundred_at_once_spend_at_most_what_there_is() {
    // "Hello" is bound by 21 tokens, the prompt around it by 16, and 200 are asked for.
    let (each, room) = (237, 2_370);
    let user = new_user(Plan::Free.terms().tokens_per_month - room).await;
    let journal = Arc::new(Journal::default());
    let chats: Vec<_> = (0..10).map(|_| chat(&journal, &[Part::Answer(37, 200)])).collect();
    let outcomes = join_all((0..100).map(|n| {
        let chat = chats[n % chats.len()];
        async move {
            let answer = chat.ask(ask(user, "Hello"), &visit(), TIME).await?;
            answer.complete().await.map(drop)
        }
    }))
    .await;
    let answered = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let refused = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    assert!(refused.clone().all(|error| error.code() == Code::QuotaExceeded), "{:?}", refused.collect::<Vec<_>>());
    assert_eq!(answered, 10, "as many as there is room for, and no more");
    let limit = Plan::Free.terms().tokens_per_month;
    assert_eq!(month(user).await, (limit - room + 10 * each, 0));
    assert_eq!((count(user, "reservations").await, count(user, "ledger").await), (0, 10));
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_in_two_thousand_requests_to_a_failing_provider() {
    const PARTS: &[Part] = &[
        Part::Answer(11, 12),
        Part::Refuse(Cause::Broken),
        Part::Answer(7, 3),
        Part::Break,
        Part::Refuse(Cause::Rejected),
        Part::Nothing,
        Part::Answer(1, 0),
    ];
    let user = new_user(0).await;
    sqlx::query("UPDATE users SET plan = 'enterprise' WHERE id = $1")
        .bind(user)
        .execute(database().pool())
        .await
        .unwrap();
    let journal = Arc::new(Journal::default());
    let chats: Vec<_> = (0..8).map(|_| chat(&journal, PARTS)).collect();
    let (answered, rejected, unavailable) = (AtomicI64::new(0), AtomicI64::new(0), AtomicI64::new(0));
    join_all(chats.iter().map(|chat| {
        let (answered, rejected, unavailable) = (&answered, &rejected, &unavailable);
        async move {
            for _ in 0..250 {
                let outcome = match chat.ask(ask(user, "Hello"), &visit(), TIME).await {
                    Ok(answer) => answer.complete().await,
                    Err(error) => Err(error),
                };
                match outcome {
                    Ok(reply) => {
                        assert_eq!(reply.message.content, "A whole answer.");
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                    Err(error) => {
                        let refused = match error.code() {
                            Code::ProviderRejected => rejected,
                            Code::ProviderUnavailable => unavailable,
                            _ => panic!("{error}"),
                        };
                        refused.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        }
    }))
    .await;
    let (answered, tokens) = (answered.into_inner(), journal.tokens.load(Ordering::SeqCst));
    assert_eq!(answered, journal.completed.load(Ordering::SeqCst));
    assert!(answered > 500 && unavailable.into_inner() > 250);
    assert_eq!(rejected.into_inner(), journal.rejected.load(Ordering::SeqCst), "it is not asked again");
    // What breaks off is kept with an estimate: a token of "Hello" and two of "Half an ".
    let broken = journal.broken.load(Ordering::SeqCst);
    let tokens = tokens + 3 * broken;
    for what in ["ledger", "questions", "answers", "conversations"] {
        assert_eq!(count(user, what).await, answered + broken, "{what}");
    }
    assert_eq!((count(user, "ledger tokens").await, count(user, "reservations").await), (tokens, 0));
    assert_eq!(month(user).await, (tokens, 0));
}

#[tokio::test]
async fn first_messages_under_one_client_id_end_up_in_one_conversation() {
    let user = new_user(0).await;
    let journal = Arc::new(Journal::default());
    let chats: Vec<_> = (0..4).map(|_| chat(&journal, &[Part::Answer(11, 12)])).collect();
    // None is stored before all have asked.
    let answers = join_all(chats.iter().map(|chat| async {
        let asked = Ask { conversation: ConversationRef::ClientId("one".to_owned()), ..ask(user, "Hello") };
        chat.ask(asked, &visit(), TIME).await.unwrap()
    }))
    .await;
    let replies = join_all(answers.into_iter().map(|answer| async { answer.complete().await.unwrap() })).await;
    assert!(replies.iter().all(|reply| reply.conversation_id == replies[0].conversation_id));
    for (what, number) in [("conversations", 1), ("questions", 4), ("answers", 4), ("ledger", 4)] {
        assert_eq!(count(user, what).await, number, "{what}");
    }
    assert_eq!(month(user).await, (4 * 23, 0));
    assert_eq!((told(user, "chat.conversation_created").await, told(user, "chat.message_sent").await), (1, 4));
}

#[tokio::test]
async fn an_answer_made_anew_takes_its_own_place_whatever_was_said_meanwhile() {
    let (journal, user) = (Arc::new(Journal::default()), new_user(0).await);
    let chat = chat(&journal, &[Part::Answer(11, 12)]);
    let first = say(chat, ask(user, "Hello")).await;
    let in_it = |message: &str| Ask { conversation: ConversationRef::Id(first.conversation_id), ..ask(user, message) };
    let again = Ask { message: None, again: true, ..in_it("") };
    let anew = chat.ask(again, &visit(), TIME).await.unwrap();
    let meanwhile = say(chat, in_it("And then?")).await;
    let anew = anew.complete().await.unwrap();
    let answers: Vec<(i32, Uuid)> = sqlx::query_as(
        "SELECT position, id FROM messages WHERE conversation_id = $1 AND role = 'assistant' ORDER BY position",
    )
    .bind(first.conversation_id)
    .fetch_all(database().pool())
    .await
    .unwrap();
    assert_eq!(answers, [(1, anew.message.id), (3, meanwhile.message.id)]);
    assert_eq!((count(user, "questions").await, month(user).await), (2, (3 * 23, 0)));
}

/// Clients sort by the time.
#[tokio::test]
async fn what_was_asked_while_another_answer_came_is_told_to_be_said_after_it() {
    let (journal, user) = (Arc::new(Journal::default()), new_user(0).await);
    let chat = chat(&journal, &[Part::Answer(11, 12)]);
    let first = say(chat, ask(user, "One")).await;
    let in_it = |message: &str| Ask { conversation: ConversationRef::Id(first.conversation_id), ..ask(user, message) };
    let second = chat.ask(in_it("Two"), &visit(), TIME).await.unwrap();
    let third = chat.ask(in_it("Three"), &visit(), TIME).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    second.complete().await.unwrap();
    third.complete().await.unwrap();
    let contents = "SELECT content FROM messages WHERE conversation_id = $1 ORDER BY created_at, position";
    let contents: Vec<String> =
        sqlx::query_scalar(contents).bind(first.conversation_id).fetch_all(database().pool()).await.unwrap();
    let in_places = exchanges(&["One", "Two", "Three"]).0.into_iter().map(|(_, content)| content);
    assert_eq!(contents, in_places.collect::<Vec<_>>());
}

/// Whoever says the same twice and asks again after the second time failed has kept the first answer.
#[tokio::test]
async fn an_answer_that_the_client_keeps_is_not_made_anew() {
    let (journal, user) = (Arc::new(Journal::default()), new_user(0).await);
    let chat = chat(&journal, &[Part::Answer(11, 12)]);
    let first = say(chat, ask(user, "Go on")).await;
    let conversation = ConversationRef::Id(first.conversation_id);
    let again = |keeps| Ask { again: true, keeps, conversation: conversation.clone(), ..ask(user, "Go on") };
    for (keeps, answers) in [(Vec::new(), 1), (vec![Uuid::now_v7()], 1)] {
        say(chat, again(keeps)).await;
        assert_eq!(count(user, "answers").await, answers);
    }
    let anew = say(chat, again(Vec::new())).await;
    let next = say(chat, again(vec![anew.message.id])).await;
    let answers: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM messages WHERE conversation_id = $1 AND role = 'assistant' ORDER BY position",
    )
    .bind(first.conversation_id)
    .fetch_all(database().pool())
    .await
    .unwrap();
    assert_eq!(answers, [anew.message.id, next.message.id]);
    assert_eq!(count(user, "questions").await, 2);
}

/// Contents in their places, beside the number that the conversation tells.
async fn messages(conversation: Uuid) -> (Vec<(i32, String)>, i32) {
    let pool = database().pool().clone();
    let messages = "SELECT position, content FROM messages WHERE conversation_id = $1 ORDER BY position";
    let messages = sqlx::query_as(messages).bind(conversation).fetch_all(&pool).await.unwrap();
    let count = "SELECT message_count FROM conversations WHERE id = $1";
    (messages, sqlx::query_scalar(count).bind(conversation).fetch_one(&pool).await.unwrap())
}

async fn say(chat: &'static Chat, ask: Ask) -> Reply {
    chat.ask(ask, &visit(), TIME).await.unwrap().complete().await.unwrap()
}

/// A question under a client's own name.
fn called(name: &str, ask: Ask) -> Ask {
    Ask { name: Some(name.to_owned()), ..ask }
}

/// The same in the place of another message, by its name, as the AI SDK edits.
fn replacing(name: &str, keeps: &[Uuid], ask: Ask) -> Ask {
    Ask { replaced: Some(name.to_owned()), keeps: keeps.to_vec(), ..called(name, ask) }
}

fn exchanges(questions: &[&str]) -> (Vec<(i32, String)>, i32) {
    let contents = questions.iter().flat_map(|question| [(*question).to_owned(), "A whole answer.".to_owned()]);
    ((0..).zip(contents).collect(), i32::try_from(questions.len()).unwrap() * 2)
}

/// The AI SDK drops what follows a message that is said or answered anew.
#[tokio::test]
async fn what_follows_an_earlier_message_that_is_replaced_is_dropped() {
    let (journal, user) = (Arc::new(Journal::default()), new_user(0).await);
    let chat = chat(&journal, &[Part::Answer(11, 12)]);
    let first = say(chat, called("q1", ask(user, "One"))).await;
    let in_it = |message: &str| Ask { conversation: ConversationRef::Id(first.conversation_id), ..ask(user, message) };
    for (name, message) in [("q2", "Two"), ("q3", "Three"), ("q4", "Four")] {
        say(chat, called(name, in_it(message))).await;
    }
    let stored = || messages(first.conversation_id);
    assert_eq!(stored().await, exchanges(&["One", "Two", "Three", "Four"]));
    let kept = [first.message.id];
    // What somebody says at the same time comes after it, or goes with the rest.
    let meanwhile = chat.ask(in_it("Meanwhile"), &visit(), TIME).await.unwrap();
    let edited = say(chat, replacing("q2", &kept, in_it("Two, edited"))).await;
    assert_eq!(stored().await, exchanges(&["One", "Two, edited"]));
    let meanwhile = meanwhile.complete().await.unwrap();
    assert_eq!(stored().await, exchanges(&["One", "Two, edited", "Meanwhile"]));
    let answer = Some(edited.message.id.to_string());
    let again = Ask { again: true, ..replacing("q2", &kept, in_it("Two, edited")) };
    let anew = say(chat, Ask { replaced: answer, ..again.clone() }).await;
    assert_ne!(anew.message.id, edited.message.id);
    assert_eq!(stored().await, exchanges(&["One", "Two, edited"]));
    // A question may be named, too, by whoever has it answered anew, and so may one that was never stored be edited.
    say(chat, again).await;
    let anew = last_answer(first.conversation_id).await;
    assert_eq!(stored().await, exchanges(&["One", "Two, edited"]));
    let third = say(chat, replacing("q3", &[first.message.id, anew], in_it("Three"))).await;
    // Words that were never said are no earlier question.
    let kept_by_all = [first.message.id, anew, third.message.id];
    say(chat, Ask { again: true, ..replacing("q9", &kept_by_all, in_it("Four")) }).await;
    assert_eq!(stored().await, exchanges(&["One", "Two, edited", "Three", "Four"]));
    // What is not there any more, or was never loaded, tells no place: nothing is overwritten.
    for keeps in [&[][..], &kept, &[first.message.id, meanwhile.message.id]] {
        for again in [false, true] {
            let lost = Ask { again, ..replacing("unknown", keeps, in_it("Five")) };
            assert_eq!(chat.ask(lost, &visit(), TIME).await.map(drop).unwrap_err().code(), Code::NotFound);
        }
    }
    assert_eq!(stored().await, exchanges(&["One", "Two, edited", "Three", "Four"]));
    // By our own id, as whoever has loaded a part of the conversation does.
    let id = "SELECT id FROM messages WHERE conversation_id = $1 AND position = 4";
    let id: Uuid = sqlx::query_scalar(id).bind(first.conversation_id).fetch_one(database().pool()).await.unwrap();
    say(chat, replacing(&id.to_string(), &[], in_it("Three, edited"))).await;
    assert_eq!(stored().await, exchanges(&["One", "Two, edited", "Three, edited"]));
    say(chat, replacing("q1", &[], in_it("One, edited"))).await;
    assert_eq!(stored().await, exchanges(&["One, edited"]));
    assert_eq!((month(user).await, count(user, "reservations").await), ((12 * 23, 0), 0));
}

/// The AI SDK asks again what has failed, whatever it was.
#[tokio::test]
async fn an_edit_that_failed_is_an_edit_when_it_is_asked_again() {
    let (journal, user) = (Arc::new(Journal::default()), new_user(0).await);
    let chat = chat(&journal, &[Part::Answer(11, 12)]);
    // What is only asked again leaves what was said after it.
    for (replaced, message, left) in [
        (None, "Two, edited", &["One", "Two, edited"][..]),
        (Some("q2".to_owned()), "Two, edited", &["One", "Two, edited"]),
        (None, "Two", &["One", "Two", "Three"]),
        (Some("q2".to_owned()), "Two", &["One", "Two"]),
    ] {
        let first = say(chat, called("q1", ask(user, "One"))).await;
        let in_it = |name: &str, message: &str| Ask {
            conversation: ConversationRef::Id(first.conversation_id),
            ..called(name, ask(user, message))
        };
        say(chat, in_it("q2", "Two")).await;
        say(chat, in_it("q3", "Three")).await;
        let again = Ask { again: true, replaced, keeps: vec![first.message.id], ..in_it("q2", message) };
        let anew = say(chat, again).await;
        assert_eq!(messages(first.conversation_id).await, exchanges(left));
        let place = "SELECT position FROM messages WHERE id = $1";
        let place: i32 = sqlx::query_scalar(place).bind(anew.message.id).fetch_one(database().pool()).await.unwrap();
        assert_eq!(place, 3);
    }
}

/// Whoever stops an answer before it begins never learns its id.
#[tokio::test]
async fn a_question_without_an_answer_is_edited_after_one_whose_answer_the_client_does_not_know() {
    let (journal, user) = (Arc::new(Journal::default()), new_user(0).await);
    let chat = chat(&journal, &[Part::Answer(11, 12)]);
    let first = say(chat, called("q1", ask(user, "One"))).await;
    let in_it = |message: &str| Ask { conversation: ConversationRef::Id(first.conversation_id), ..ask(user, message) };
    say(chat, called("q2", in_it("Two"))).await;
    let edit = |follows: &[&str]| {
        let follows = follows.iter().map(|name| (*name).to_owned()).collect();
        Ask { follows, ..replacing("q3", &[first.message.id], in_it("Three")) }
    };
    let refused = chat.ask(edit(&["q1"]), &visit(), TIME).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    say(chat, edit(&["q1", "q2"])).await;
    assert_eq!(messages(first.conversation_id).await, exchanges(&["One", "Two", "Three"]));
}

async fn last_answer(conversation: Uuid) -> Uuid {
    let last = "SELECT id FROM messages WHERE conversation_id = $1 ORDER BY position DESC LIMIT 1";
    sqlx::query_scalar(last).bind(conversation).fetch_one(database().pool()).await.unwrap()
}

#[tokio::test]
async fn many_edits_at_once_leave_one_conversation_in_order() {
    let (journal, user) = (Arc::new(Journal::default()), new_user(0).await);
    let chats: Vec<_> = (0..8).map(|_| chat(&journal, &[Part::Answer(11, 12)])).collect();
    let first = say(chats[0], called("q1", ask(user, "One"))).await;
    let conversation = ConversationRef::Id(first.conversation_id);
    say(chats[0], called("q2", Ask { conversation: conversation.clone(), ..ask(user, "Two") })).await;
    join_all(chats.iter().enumerate().flat_map(|(n, chat)| {
        let named = |ask: Ask| Ask { conversation: conversation.clone(), ..ask };
        let edit = replacing("q2", &[first.message.id], named(ask(user, "Edited")));
        [say(chat, edit), say(chat, named(ask(user, &format!("More {n}"))))]
    }))
    .await;
    let (stored, count) = messages(first.conversation_id).await;
    assert_eq!(count, i32::try_from(stored.len()).unwrap());
    assert!(stored.iter().zip(0..).all(|((position, _), place)| *position == place), "{stored:?}");
    assert_eq!(month(user).await, (18 * 23, 0));
}

/// Whatever ends first: an answer that is made anew finds its question or comes at the end with it.
#[tokio::test]
async fn what_is_made_anew_while_its_question_goes_comes_at_the_end() {
    let (journal, user) = (Arc::new(Journal::default()), new_user(0).await);
    let chat = chat(&journal, &[Part::Answer(11, 12)]);
    let first = say(chat, called("q1", ask(user, "One"))).await;
    let in_it = |message: &str| Ask { conversation: ConversationRef::Id(first.conversation_id), ..ask(user, message) };
    let second = say(chat, called("q2", in_it("Two"))).await;
    say(chat, called("q3", in_it("Three"))).await;
    let kept = [first.message.id, second.message.id];
    // The last answer anew, an earlier one anew, and two edits, while the first question is edited.
    let under_way = [
        Ask { again: true, message: None, ..in_it("") },
        Ask { again: true, ..replacing("q2", &kept[..1], in_it("Two")) },
        replacing("q2", &kept[..1], in_it("Two, edited")),
        replacing("q3", &kept, in_it("Three, edited")),
    ];
    let mut begun = Vec::new();
    for ask in under_way {
        begun.push(chat.ask(ask, &visit(), TIME).await.unwrap());
    }
    say(chat, replacing("q1", &[], in_it("One, edited"))).await;
    for answer in begun {
        answer.complete().await.unwrap();
    }
    let expected = ["One, edited", "Three", "Two, edited", "Three, edited"];
    assert_eq!(messages(first.conversation_id).await, exchanges(&expected));
    // The question is there, in other words.
    let anew = chat.ask(Ask { again: true, message: None, ..in_it("") }, &visit(), TIME).await.unwrap();
    say(chat, replacing("q3", &kept, in_it("Three, once more"))).await;
    anew.complete().await.unwrap();
    let expected = ["One, edited", "Three", "Two, edited", "Three, once more", "Three, edited"];
    assert_eq!(messages(first.conversation_id).await, exchanges(&expected));
    // What comes at the end is told as new.
    let regenerated = async || {
        let told = "SELECT count(*) FROM outbox
            WHERE body::jsonb ->> 'subject' = $1 AND (body::jsonb -> 'data' ->> 'regenerated')::boolean";
        sqlx::query_scalar::<_, i64>(told).bind(user.to_string()).fetch_one(database().pool()).await.unwrap()
    };
    assert_eq!(regenerated().await, 0);
    say(chat, Ask { again: true, message: None, ..in_it("") }).await;
    assert_eq!(regenerated().await, 1);
    say(chat, in_it("And on")).await;
    assert_eq!(month(user).await, (12 * 23, 0));
}

#[tokio::test]
async fn a_conversation_outlives_its_model() {
    let (journal, user) = (Arc::new(Journal::default()), new_user(0).await);
    let chat = chat(&journal, &[Part::Answer(11, 12)]);
    let first = say(chat, ask(user, "Hello")).await;
    sqlx::query("UPDATE conversations SET model = 'long-gone' WHERE id = $1")
        .bind(first.conversation_id)
        .execute(database().pool())
        .await
        .unwrap();
    let next =
        say(chat, Ask { conversation: ConversationRef::Id(first.conversation_id), ..ask(user, "Still there?") }).await;
    assert_eq!(next.model, first.model);
}

/// What was delivered is paid for where it cannot be kept.
#[tokio::test]
async fn an_answer_whose_place_is_taken_is_billed() {
    let (journal, user) = (Arc::new(Journal::default()), new_user(0).await);
    let chat = chat(&journal, &[Part::Answer(11, 12)]);
    let first = say(chat, ask(user, "Hello")).await;
    sqlx::query(
        "INSERT INTO messages (conversation_id, position, id, role, content, terms, created_at)
         VALUES ($1, 3, $2, 'user', 'In the way', '', now())",
    )
    .bind(first.conversation_id)
    .bind(Uuid::now_v7())
    .execute(database().pool())
    .await
    .unwrap();
    let request_id = Uuid::now_v7();
    let conversation = ConversationRef::Id(first.conversation_id);
    let asked = Ask { conversation, request_id: Some(request_id), ..ask(user, "Hello") };
    let answer = chat.ask(asked, &visit(), TIME).await.unwrap();
    assert_eq!(answer.complete().await.unwrap_err().code(), Code::Internal);
    assert!(chat.answered(user, request_id).await.unwrap().is_none(), "the next try asks anew");
    assert_eq!((count(user, "ledger").await, count(user, "answers").await), (2, 1));
    assert_eq!((count(user, "questions").await, told(user, "chat.message_sent").await), (2, 2));
    assert_eq!((month(user).await, count(user, "reservations").await), ((2 * 23, 0), 0));
}

#[tokio::test]
async fn an_answer_is_stored_whenever_its_reader_leaves() {
    let journal = Arc::new(Journal::default());
    let user = new_user(0).await;
    for read in 0..5 {
        let chat = chat(&journal, &[Part::Answer(11, 12)]);
        let mut asked = ask(user, "Hello");
        asked.streamed = true;
        let answer = chat.ask(asked, &visit(), TIME).await.unwrap();
        let mut events = answer.stream(Protocol::Native, None);
        for _ in 0..read {
            events.next().await;
        }
        drop(events);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while count(user, "ledger").await < 5 {
        assert!(Instant::now() < deadline, "waited in vain for five answers");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((count(user, "answers").await, month(user).await), (5, (5 * 23, 0)));
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_an_error_and_bills_what_came() {
    let (journal, user) = (Arc::new(Journal::default()), new_user(0).await);
    let mut asked = ask(user, "Hello");
    asked.streamed = true;
    let answer = chat(&journal, &[Part::Break]).ask(asked, &visit(), TIME).await.unwrap();
    let events: Vec<_> = answer.stream(Protocol::Native, None).collect().await;
    let text = String::from_utf8(events.concat()).unwrap();
    assert!(text.contains("event: error\ndata: {\"code\":\"provider_unavailable\""), "{text}");
    assert!(!text.contains("event: done"), "{text}");
    let spent = count(user, "ledger tokens").await;
    assert!(spent > 0);
    assert_eq!((month(user).await, count(user, "answers").await), ((spent, 0), 1));
}

/// A provider that answers by a function of what it was asked.
struct Answering<F>(F);

impl<F: Fn(&Call) -> Pieces + Send + Sync> Provider for Answering<F> {
    fn start<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Result<Pieces, Failure>> {
        let pieces = self.0(call);
        Box::pin(async { Ok(pieces) })
    }
}

fn answering(answer: impl Fn(&Call) -> Pieces + Send + Sync + 'static) -> &'static Chat {
    let providers = Providers::new(vec![(ProviderId::Openai, Box::new(Answering(answer)))], RetryPolicy::default());
    Box::leak(Box::new(Chat::new(database(), providers, None)))
}

#[tokio::test]
async fn what_the_client_sets_reaches_the_model() {
    let user = new_user(0).await;
    let chat = answering(|call| {
        let set = format!("{:?} {:?}", call.system, call.temperature);
        Box::pin(futures_util::stream::iter([Ok(Piece::Text(set)), Ok(Piece::Finish(FinishReason::Stop))]))
    });
    let set = async |ask: Ask| {
        let reply = say(chat, ask).await;
        (reply.conversation_id, reply.message.content)
    };
    assert_eq!(set(ask(user, "Hi")).await.1, "None None");
    let brief = Ask { system_prompt: Some("Be brief.".to_owned()), temperature: Some(0.5), ..ask(user, "Hi") };
    let (conversation, first) = set(brief).await;
    assert_eq!(first, "Some(\"Be brief.\") Some(0.5)");
    // The prompt is the conversation's, unless the next question has one of its own; the temperature is the question's.
    let on = || Ask { conversation: ConversationRef::Id(conversation), ..ask(user, "Go on") };
    assert_eq!(set(on()).await.1, "Some(\"Be brief.\") None");
    let other = Ask { system_prompt: Some("Be long.".to_owned()), temperature: Some(0.0), ..on() };
    assert_eq!(set(other).await.1, "Some(\"Be long.\") Some(0.0)");
}

#[tokio::test]
async fn why_a_provider_begins_no_answer_is_told() {
    let user = new_user(0).await;
    for (cause, code) in [
        (Cause::TimedOut, Code::ProviderTimeout),
        (Cause::Exhausted, Code::ProviderRateLimited),
        (Cause::Rejected, Code::ProviderRejected),
    ] {
        let parts: &'static [Part] = Box::leak(Box::new([Part::Refuse(cause)]));
        let refused = chat(&Arc::default(), parts).ask(ask(user, "Hi"), &visit(), TIME).await.err().unwrap();
        assert_eq!(refused.code(), code, "{refused}");
    }
    assert_eq!((month(user).await, count(user, "ledger").await), ((0, 0), 0));
}

#[tokio::test]
async fn only_configured_providers_are_asked() {
    let user = new_user(0).await;
    let chat = chat(&Arc::default(), &[Part::Answer(11, 12)]);
    let (provider, model) = (Some(ProviderId::Google), Some("gemini-2.5-flash".to_owned()));
    for asked in [Ask { provider, ..ask(user, "Hi") }, Ask { model, ..ask(user, "Hi") }] {
        let refused = chat.ask(asked, &visit(), TIME).await.err().unwrap();
        assert_eq!(refused.code(), Code::ModelNotAvailable, "{refused}");
    }
    let other =
        Ask { provider: Some(ProviderId::Openai), model: Some("gemini-2.5-flash".to_owned()), ..ask(user, "Hi") };
    assert_eq!(chat.ask(other, &visit(), TIME).await.err().unwrap().code(), Code::ModelNotAvailable);
}

/// Who stops it at its first word has not thought for nothing.
#[tokio::test]
async fn thoughts_that_were_not_counted_are_billed_by_their_time() {
    let user = new_user(0).await;
    let chat = answering(|_| {
        let thought = futures_util::stream::once(async {
            tokio::time::sleep(Duration::from_millis(2_100)).await;
            Ok(Piece::Text("Ah".to_owned()))
        });
        let broken = futures_util::stream::iter([Err(Failure::new(Cause::Broken, "played"))]);
        Box::pin(futures_util::stream::iter([Ok(Piece::Thinking)]).chain(thought).chain(broken))
    });
    let failed = chat.ask(ask(user, "Hello"), &visit(), TIME).await.unwrap().complete().await.unwrap_err();
    assert_eq!(failed.code(), Code::ProviderUnavailable);
    // A token in, one out, and two seconds, or more on a busy machine.
    let spent = count(user, "ledger tokens").await;
    assert!(spent >= 102 && (spent - 2) % 50 == 0, "{spent}");
    assert_eq!(month(user).await, (spent, 0));
}

/// What is estimated is neither taken for exact nor more than was allowed.
#[tokio::test]
async fn a_count_that_does_not_come_is_estimated() {
    let user = new_user(0).await;
    let chat = answering(|_| {
        let so_far = Usage { input_tokens: 2, output_tokens: 1, estimated: true, ..Usage::default() };
        let said = [Piece::Text("word ".repeat(150)), Piece::Usage(so_far), Piece::Finish(FinishReason::ContentFilter)];
        Box::pin(futures_util::stream::iter(said.map(Ok)))
    });
    let reply = say(chat, ask(user, "Hello")).await;
    assert_eq!((&reply.usage["outputTokens"], &reply.usage["estimated"]), (&150.into(), &true.into()));
    assert_eq!(month(user).await, (152, 0));
}

#[tokio::test]
async fn what_was_refused_is_not_sent_again() {
    let user = new_user(0).await;
    let chat = answering(|call| {
        let asked: Vec<&str> = call.turns.iter().map(|turn| turn.content.as_str()).collect();
        let reason = if asked.ends_with(&["No"]) { FinishReason::ContentFilter } else { FinishReason::Stop };
        Box::pin(futures_util::stream::iter([Ok(Piece::Text(asked.join("|"))), Ok(Piece::Finish(reason))]))
    });
    let first = say(chat, ask(user, "Hi")).await;
    let on = |message: &str| Ask { conversation: ConversationRef::Id(first.conversation_id), ..ask(user, message) };
    let refused = say(chat, on("No")).await;
    assert_eq!((refused.message.content.as_str(), refused.finish_reason), ("Hi|Hi|No", FinishReason::ContentFilter));
    assert_eq!(say(chat, on("So?")).await.message.content, "Hi|Hi|So?");
    assert_eq!(messages(first.conversation_id).await.1, 6);
}

#[tokio::test]
async fn tokens_of_dead_functions_come_back() {
    let (user, pool) = (new_user(0).await, database().pool().clone());
    let abandon = async || {
        let mut connection = pool.acquire().await.unwrap();
        quota::reserve(&mut connection, user, 40_000, 40_000).await.unwrap();
        sqlx::query("UPDATE quota_reservations SET progress_at = now() - interval '61 seconds' WHERE user_id = $1")
            .bind(user)
            .execute(&mut *connection)
            .await
            .unwrap();
    };
    abandon().await;
    assert_eq!(month(user).await, (0, 40_000));
    quota::sweep(&pool).await.unwrap();
    assert_eq!(month(user).await, (0, 0));
    // The user's next request does not wait for the sweep.
    abandon().await;
    let mut connection = pool.acquire().await.unwrap();
    let reservation = quota::reserve(&mut connection, user, 40_000, 40_000).await.unwrap();
    drop(connection);
    assert_eq!(month(user).await, (0, 40_000));
    // A settlement after the release still counts what was spent, once.
    let mut connection = pool.acquire().await.unwrap();
    reservation.settle(&mut connection, 100).await.unwrap();
    let quota = reservation.settle(&mut connection, 0).await.unwrap();
    assert_eq!((quota.used, quota.reserved), (100, 0));
    // Nor does it need the month, whose first row a crash may have taken back.
    sqlx::query("DELETE FROM quota_periods WHERE user_id = $1").bind(user).execute(&mut *connection).await.unwrap();
    let quota = reservation.settle(&mut connection, 50).await.unwrap();
    assert_eq!((quota.used, quota.reserved), (50, 0));
}

#[tokio::test]
async fn tokens_of_a_long_answer_stay_reserved() {
    let (user, pool) = (new_user(0).await, database().pool().clone());
    let reservation = quota::reserve(&mut pool.acquire().await.unwrap(), user, 40_000, 40_000).await.unwrap();
    let grows_old = "UPDATE quota_reservations SET progress_at = now() - interval '55 seconds' WHERE user_id = $1";
    sqlx::query(grows_old).bind(user).execute(&pool).await.unwrap();
    quota::sweep(&pool).await.unwrap();
    assert_eq!(month(user).await, (0, 40_000));
    let has_beaten = "SELECT progress_at > now() - interval '30 seconds' FROM quota_reservations WHERE user_id = $1";
    let work = eventually(true, async || sqlx::query_scalar(has_beaten).bind(user).fetch_one(&pool).await.unwrap());
    reservation.keep_beating(&pool, Duration::from_millis(20), work).await;
}

/// Without a reservation the provider is not asked.
#[tokio::test]
async fn a_reservation_that_is_not_committed_lets_nobody_in() {
    let (user, pool) = (new_user(0).await, database().pool().clone());
    let name = format!("refuse_{}", user.simple());
    let run = async |statement: String| sqlx::raw_sql(AssertSqlSafe(statement)).execute(&pool).await.unwrap();
    // Refuses at the commit what it let pass before.
    run(format!(
        "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
         CREATE CONSTRAINT TRIGGER {name} AFTER INSERT ON quota_reservations DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW WHEN (NEW.user_id = '{user}') EXECUTE FUNCTION {name}()"
    ))
    .await;
    let journal = Arc::new(Journal::default());
    let chat = chat(&journal, &[Part::Answer(10, 5)]);
    let outcome = chat.ask(ask(user, "Hi"), &visit(), TIME).await;
    run(format!("DROP TRIGGER {name} ON quota_reservations; DROP FUNCTION {name}()")).await;
    assert!(outcome.is_err());
    assert_eq!((month(user).await, count(user, "answers").await), ((0, 0), 0));
    assert_eq!(journal.calls.load(Ordering::SeqCst), 0);
    assert!(chat.ask(ask(user, "Hi"), &visit(), TIME).await.is_ok());
}

/// However many conversations somebody has, a page of them is read from an index, in order; words are looked up.
#[tokio::test]
async fn pages_and_searches_are_read_from_indexes() {
    let pool = database().pool().clone();
    // Rolled back: nobody else sees the conversations.
    let mut transaction = pool.begin().await.unwrap();
    let talker = Talker::new(&mut transaction, 20_000, 2_000).await.unwrap();
    for (question, index) in [
        (Question::List, "conversations_by_activity"),
        (Question::Pinned, "conversations_pinned"),
        (Question::Walk("words"), "conversations_by_activity"),
        (Question::Walk("words"), "messages_pkey"),
        (Question::LookUp("seldom"), "messages_terms"),
        (Question::LookUp("seldom"), "conversations_terms"),
        (Question::Messages, "messages_pkey"),
        (Question::LastMessages, "messages_pkey"),
    ] {
        let plan = talker.plan(&mut transaction, question).await.unwrap().join("\n");
        assert!(plan.contains(index), "{question:?} goes without {index}:\n{plan}");
        assert!(!plan.contains("Seq Scan on messages"), "{question:?} reads all messages:\n{plan}");
        let is_list = matches!(question, Question::List | Question::Pinned);
        assert!(!is_list || !plan.contains("Sort"), "{question:?} sorts:\n{plan}");
    }
    transaction.rollback().await.unwrap();
}

/// A generator of numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// Some words, of which the later ones of the list are rarer.
    fn text(&mut self) -> String {
        const WORDS: [&str; 8] = ["the", "then", "cat", "catalogue", "dog", "dogma", "zebra", "zen"];
        let count = 1 + self.below(4);
        let words: Vec<_> = (0..count)
            .map(|_| {
                let width = 1 + self.below(8);
                WORDS[usize::try_from(self.below(width)).unwrap()]
            })
            .collect();
        words.join(" ")
    }
}

/// A conversation as the plain search sees it.
struct Talk {
    id: Uuid,
    archived: bool,
    pinned: bool,
    minute: u64,
    texts: Vec<String>,
}

async fn talk(user: Uuid, dice: &mut Dice) -> Talk {
    let pool = database().pool().clone();
    let texts: Vec<String> = (0..1 + dice.below(6)).map(|_| dice.text()).collect();
    // Many have their last message in the same minute.
    let (archived, pinned) = (dice.below(4) == 0, dice.below(4) == 0);
    let talk = Talk { id: Uuid::now_v7(), archived, pinned, minute: dice.below(20), texts };
    sqlx::query(
        "INSERT INTO conversations (id, user_id, title, archived, pinned, message_count, terms, last_message_at)
         VALUES ($1, $2, $3, $4, $5, $6, array_to_tsvector($7::text[]),
             '2026-01-01'::timestamptz + $8 * interval '1 minute')",
    )
    .bind(talk.id)
    .bind(user)
    .bind(&talk.texts[0])
    .bind(talk.archived)
    .bind(talk.pinned)
    .bind(i32::try_from(talk.texts.len() - 1).unwrap())
    .bind(search::terms(user, &talk.texts[0]))
    .bind(i32::try_from(talk.minute).unwrap())
    .execute(&pool)
    .await
    .unwrap();
    for (position, text) in (0..).zip(&talk.texts[1..]) {
        sqlx::query(
            "INSERT INTO messages (conversation_id, position, id, role, content, terms, created_at)
             VALUES ($1, $2, gen_random_uuid(), 'user', $3, array_to_tsvector($4::text[]), now())",
        )
        .bind(talk.id)
        .bind::<i32>(position)
        .bind(text)
        .bind(search::terms(user, text))
        .execute(&pool)
        .await
        .unwrap();
    }
    talk
}

/// Whichever way a search takes, it finds what reading everything finds, page by page.
#[tokio::test]
async fn a_search_finds_what_a_full_read_finds() {
    let (user, other) = (new_user(0).await, new_user(0).await);
    let mut dice = Dice(20_261_124);
    let mut talks = Vec::new();
    for _ in 0..80 {
        talks.push(talk(user, &mut dice).await);
        // Another's words are in the same indexes.
        talk(other, &mut dice).await;
    }
    talks.sort_by_key(|talk| std::cmp::Reverse((talk.minute, talk.id)));
    let efforts = [
        Effort::default(),
        Effort { first_walk: 1, few: 0, hits: 0, second_walk: 7 },
        Effort { first_walk: 0, few: 2, hits: 5, second_walk: 0 },
        Effort { first_walk: 9, few: 60, hits: 3, second_walk: 30 },
        Effort { first_walk: 0, few: 0, hits: 400, second_walk: 0 },
        Effort { first_walk: 0, few: 400, hits: 400, second_walk: 0 },
    ];
    for effort in efforts {
        let conversations = Conversations::new(database()).with_effort(effort);
        for (q, archived, pinned) in ["the", "th", "cat the", "dog", "dogma", "zebra", "zen z", "absent"]
            .into_iter()
            .flat_map(|q| [(q, false, None), (q, true, None), (q, false, Some(true)), (q, false, Some(false))])
        {
            let has = |text: &String| q.split(' ').all(|word| text.split(' ').any(|found| found.starts_with(word)));
            let expected: Vec<Uuid> = talks
                .iter()
                .filter(|talk| talk.archived == archived && pinned.is_none_or(|pinned| talk.pinned == pinned))
                .filter(|talk| talk.texts.iter().any(has))
                .map(|talk| talk.id)
                .collect();
            let filter = Filter { q: Some(q.to_owned()), archived, pinned };
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let (page, next) = conversations.list(user, &filter, Limit(7), after).await.unwrap();
                found.extend(page.iter().map(|conversation| conversation.id));
                match next {
                    Some(next) => after = Some(Cursor::parse(Raw::Text(&next)).unwrap()),
                    None => break,
                }
            }
            assert_eq!(found, expected, "{q} {archived} {pinned:?} {effort:?}");
        }
    }
}

/// Answers, and writes titles when it is let.
struct Entitler {
    title: Result<&'static str, Cause>,
    may_write: Arc<Notify>,
}

impl Provider for Entitler {
    fn start<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Result<Pieces, Failure>> {
        let is_title = call.system.as_deref().is_some_and(|system| system.starts_with("Write a title"));
        Box::pin(async move {
            let (text, output_tokens) = if is_title {
                assert!(call.turns[0].content.contains("What is the weather") && call.max_tokens < 100);
                self.may_write.notified().await;
                (self.title.map_err(|cause| Failure::new(cause, "played"))?, 7)
            } else {
                ("Sunny.", 5)
            };
            let usage = Usage { input_tokens: 40, output_tokens, ..Usage::default() };
            let pieces = [Piece::Text(text.to_owned()), Piece::Finish(FinishReason::Stop), Piece::Usage(usage)].map(Ok);
            Ok(Box::pin(futures_util::stream::iter(pieces)) as Pieces)
        })
    }
}

/// Asks a first question; gives the conversation, and what lets its title be written.
async fn untitled(user: Uuid, title: Result<&'static str, Cause>) -> (Uuid, Arc<Notify>) {
    let may_write = Arc::new(Notify::new());
    let entitler = Entitler { title, may_write: may_write.clone() };
    let providers = Providers::new(vec![(ProviderId::Openai, Box::new(entitler))], RetryPolicy::default());
    let model = Catalogue::get().unwrap().find("gpt-4o-mini").unwrap();
    let chat: &'static Chat = Box::leak(Box::new(Chat::new(database(), providers, None).with_title_model(model)));
    let answer = chat.ask(ask(user, "What is the weather in Bern?"), &visit(), TIME).await.unwrap();
    (answer.complete().await.unwrap().conversation_id, may_write)
}

async fn title(conversation: Uuid) -> String {
    let title = sqlx::query_scalar("SELECT title FROM conversations WHERE id = $1").bind(conversation);
    title.fetch_one(database().pool()).await.unwrap()
}

/// Tokens of the titles of a conversation that are kept, and whether they have a price.
async fn titles_cost(conversation: Uuid) -> Vec<(i64, i64, bool)> {
    let rows = sqlx::query_as(
        "SELECT input_tokens, output_tokens, cost_micro_usd > 0 FROM title_ledger WHERE conversation_id = $1",
    );
    rows.bind(conversation).fetch_all(database().pool()).await.unwrap()
}

async fn eventually<T: PartialEq + std::fmt::Debug>(expected: T, look: impl AsyncFn() -> T) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = look().await;
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?} instead of {expected:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_title_is_there_at_once_and_better_a_moment_later() {
    let user = new_user(0).await;
    let (conversation, may_write) = untitled(user, Ok("\"Weather in Bern.\"")).await;
    assert_eq!(title(conversation).await, "What is the weather in Bern?");
    may_write.notify_one();
    eventually("Weather in Bern".to_owned(), async || title(conversation).await).await;
    // What the house asks for is kept, and is not the user's.
    assert_eq!(titles_cost(conversation).await, [(40, 7, true)]);
    assert_eq!((month(user).await, count(user, "ledger tokens").await), ((45, 0), 45));
    // The new title is found, the old one no more.
    let conversations = Conversations::new(database());
    for (q, hits) in [("Bern weather", 1), ("absent", 0)] {
        let filter = Filter { q: Some(q.to_owned()), archived: false, pinned: None };
        assert_eq!(conversations.list(user, &filter, Limit(7), None).await.unwrap().0.len(), hits, "{q}");
    }
}

#[tokio::test]
async fn a_title_that_the_user_sets_meanwhile_stays() {
    let user = new_user(0).await;
    let (conversation, may_write) = untitled(user, Ok("Weather")).await;
    let change = Change { title: Some("My own".to_owned()), pinned: None, archived: None };
    Conversations::new(database()).change(user, conversation, change).await.unwrap();
    may_write.notify_one();
    eventually(1, async || titles_cost(conversation).await.len()).await;
    assert_eq!(title(conversation).await, "My own");
}

#[tokio::test]
async fn without_a_written_title_the_first_one_stays() {
    let (empty, broken) = (new_user(0).await, new_user(0).await);
    let (conversation, may_write) = untitled(empty, Ok(" \"\" ")).await;
    may_write.notify_one();
    eventually(1, async || titles_cost(conversation).await.len()).await;
    assert_eq!(title(conversation).await, "What is the weather in Bern?");
    let (conversation, may_write) = untitled(broken, Err(Cause::RateLimited)).await;
    may_write.notify_one();
    lib::background::drained().await;
    assert_eq!(title(conversation).await, "What is the weather in Bern?");
    assert_eq!((titles_cost(conversation).await, month(broken).await), (Vec::new(), (45, 0)));
}
