//! What the mail worker makes of the jobs in its queue, by the deployed function.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lib::clock;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::lost_answers::{LOST, ask_by, way_to_aws};
use crate::support::*;

const PAYMENT_FAILED: &str = "Your payment failed";

/// The id of a mail that was asked for so long ago.
fn id_of(age: Duration) -> Uuid {
    clock::uuid_at(OffsetDateTime::now_utc() - age)
}

fn job(id: Uuid, kind: &str, person: &Person) -> Value {
    json!({"id": id, "message": kind, "recipient": {"user": person.id}})
}

/// A delivery of jobs, as SQS makes it.
fn delivery(jobs: &[Value]) -> Value {
    let record = |(index, job): (usize, &Value)| {
        let mut record: Value = serde_json::from_str(include_str!("../../../events/workers-send-mail.json")).unwrap();
        let mut record = record["Records"][0].take();
        record["messageId"] = format!("message-{index}").into();
        record["body"] = job.to_string().into();
        record
    };
    json!({"Records": jobs.iter().enumerate().map(record).collect::<Vec<_>>()})
}

/// How many of the jobs are to come again.
fn failed(reply: &Value) -> usize {
    reply["batchItemFailures"].as_array().unwrap_or_else(|| panic!("{reply}")).len()
}

async fn count(person: &Person, subject: &str) -> usize {
    mails_to(&person.email).await.iter().filter(|mail| mail.subject == subject).count()
}

fn is_for_ses(call: &str) -> bool {
    call.starts_with("POST /v2/email/outbound-emails")
}

/// SES, which refuses the first mails with a message; and how often it was asked.
fn busy_ses(refused: usize, message: &'static str) -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let way = way_to_aws(move |call, pass_on| {
        if !is_for_ses(call) || counted.fetch_add(1, Ordering::SeqCst) >= refused {
            return pass_on();
        }
        let body = json!({"message": message}).to_string();
        let head = "HTTP/1.1 429 Too Many Requests\r\nx-amzn-errortype: TooManyRequestsException\r\nconnection: close";
        format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    });
    (way, asked)
}

#[tokio::test]
async fn a_mail_that_is_one_too_many_in_its_second_goes_out_in_the_next() {
    let person = Api::of_router().sign_up().await;
    let (way, asked) = busy_ses(2, "Maximum sending rate exceeded.");
    let job = job(id_of(Duration::ZERO), "password-changed", &person);
    let reply = ask_by(&way, "workers-send-mail", &delivery(&[job]));
    assert_eq!((failed(&reply), asked.load(Ordering::SeqCst)), (0, 3), "{reply}");
    assert_eq!(count(&person, CHANGED).await, 1);
}

#[tokio::test]
async fn the_end_of_a_days_quota_is_left_to_the_queue() {
    let person = Api::of_router().sign_up().await;
    let (way, asked) = busy_ses(usize::MAX, "Daily message quota exceeded.");
    let job = job(id_of(Duration::ZERO), "password-changed", &person);
    let copy = job.clone();
    let reply = ask_by(&way, "workers-send-mail", &delivery(&[job]));
    assert_eq!((failed(&reply), asked.load(Ordering::SeqCst)), (1, 1), "{reply}");
    // A copy that comes before the queue's next try is not taken for one too many.
    let reply = ask_by(&variable("AWS_ENDPOINT_URL"), "workers-send-mail", &delivery(&[copy]));
    assert_eq!((failed(&reply), count(&person, CHANGED).await), (1, 0), "{reply}");
}

#[tokio::test]
async fn copies_of_a_job_are_one_mail() {
    let person = Api::of_router().sign_up().await;
    let job = job(id_of(Duration::ZERO), "password-changed", &person);
    // The answer to each first claim gets lost, which is no copy's claim.
    let lost = AtomicUsize::new(0);
    let way = way_to_aws(move |call, pass_on| {
        let answer = pass_on();
        let is_claim = call.contains("DynamoDB_20120810.PutItem") && call.contains("claimed_by");
        if is_claim && lost.fetch_add(1, Ordering::SeqCst) == 0 { LOST.to_vec() } else { answer }
    });
    let reply = ask_by(&way, "workers-send-mail", &delivery(&[job.clone(), job.clone()]));
    // One that comes while the other is worked on is left to the queue.
    assert!(failed(&reply) < 2, "{reply}");
    // Another sandbox, later.
    let reply = ask_by(&way, "workers-send-mail", &delivery(&[job]));
    assert_eq!(failed(&reply), 0, "{reply}");
    assert_eq!(count(&person, CHANGED).await, 1);
}

#[tokio::test]
async fn news_of_billing_are_not_told_days_later() {
    let person = Api::of_router().sign_up().await;
    let days = |days: u64| id_of(Duration::from_secs(days * 86_400));
    let jobs = [
        job(days(2), "payment-failed", &person),
        job(days(0), "payment-failed", &person),
        job(days(13), "password-changed", &person),
    ];
    let reply = ask_by(&variable("AWS_ENDPOINT_URL"), "workers-send-mail", &delivery(&jobs));
    assert_eq!(failed(&reply), 0, "{reply}");
    assert_eq!((count(&person, PAYMENT_FAILED).await, count(&person, CHANGED).await), (1, 1));
}
