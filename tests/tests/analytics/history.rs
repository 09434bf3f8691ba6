//! Random histories: valid events of every type, with the duplicates, late and malformed messages of real life.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

/// xorshift64*, so that a failure can be repeated by its seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[usize::try_from(self.below(items.len() as u64)).unwrap()]
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, usize::try_from(self.below(at as u64 + 1)).unwrap());
        }
    }
}

/// One message and, if it is an event, what it tells.
#[derive(Clone)]
pub struct Message {
    pub body: String,
    pub event: Option<Told>,
}

/// An event in the words of the contract.
#[derive(Clone)]
pub struct Told {
    pub id: u128,
    pub kind: String,
    pub subject: String,
    /// Milliseconds since the epoch.
    pub time: i64,
    pub data: Value,
}

pub const FIRST_DAY: i64 = 1_761_955_200_000; // 2025-11-01
pub const DAYS: u64 = 110;
const PLANS: [&str; 3] = ["free", "pro", "enterprise"];
const PROVIDERS: [&str; 3] = ["openai", "anthropic", "google"];
const ERRORS: [&str; 4] = ["rate_limit", "timeout", "stream_broken", "rejected"];

/// Messages in the order in which they arrive.
pub fn history(random: &mut Random, events: usize) -> Vec<Message> {
    let users: Vec<String> = (0..30).map(|_| Uuid::from_u128(wide(random)).to_string()).collect();
    let mut messages: Vec<Message> = (0..events).map(|_| valid(random, &users)).collect();
    // Every message may come again; a second message with a known id says something else.
    for _ in 0..events / 5 {
        let mut again = messages[usize::try_from(random.below(messages.len() as u64)).unwrap()].clone();
        if random.chance(50) {
            let mut other = valid(random, &users);
            let id = again.event.as_ref().map(|event| event.id).unwrap_or_default();
            let mut body: Value = serde_json::from_str(&other.body).unwrap();
            body["id"] = json!(Uuid::from_u128(id));
            other.body = body.to_string();
            other.event = other.event.map(|event| Told { id, ..event });
            again = other;
        }
        messages.push(again);
    }
    for _ in 0..events / 20 {
        messages.push(malformed(random, &users));
    }
    random.shuffle(&mut messages);
    messages
}

fn wide(random: &mut Random) -> u128 {
    u128::from(random.next()) << 64 | u128::from(random.next())
}

fn malformed(random: &mut Random, users: &[String]) -> Message {
    let body = valid(random, users).body;
    let mut value: Value = serde_json::from_str(&body).unwrap();
    let body = match random.below(8) {
        0 => body[..body.len() - 1].to_owned(),
        1 => {
            value["type"] = json!("user.renamed");
            value.to_string()
        }
        2 => {
            value["data"]["plan"] = json!("gold");
            value.to_string()
        }
        3 => {
            value["subject"] = json!("");
            value.to_string()
        }
        4 => {
            value["time"] = json!("yesterday");
            value.to_string()
        }
        5 => {
            value["data"]["schemaVersion"] = json!(1.0);
            value.to_string()
        }
        6 => {
            value["type"] = json!("billing.payment_refunded");
            value["data"]["paymentId"] = json!("p");
            value["data"]["amountMinor"] = json!(i64::MAX);
            value["data"]["currency"] = json!("USD");
            value.to_string()
        }
        _ => format!("{body}{body}"),
    };
    Message { body, event: None }
}

fn valid(random: &mut Random, users: &[String]) -> Message {
    let user = usize::try_from(random.below(users.len() as u64)).unwrap();
    let subject = users[user].clone();
    // Few moments, so that some events are at the same one.
    let time = FIRST_DAY + i64::try_from(random.below(DAYS * 24 * 60)).unwrap() * 60_000 + 123;
    let plan = random.of(&PLANS);
    let (kind, mut data) = data(random, user);
    data["schemaVersion"] = json!(1);
    data["plan"] = json!(plan);
    data["country"] = if random.chance(30) { json!(null) } else { json!("DE") };
    let id = wide(random);
    let shown = if random.chance(10) { subject.to_uppercase() } else { subject.clone() };
    let body = json!({
        "specversion": "1.0", "id": Uuid::from_u128(id), "source": "/test", "type": kind, "subject": shown,
        "time": written(random, time), "datacontenttype": "application/json",
        "data": if id.is_multiple_of(5) { with_strays(kind, &data) } else { data.clone() },
    });
    let event = Told { id, kind: kind.to_owned(), subject, time, data };
    Message { body: body.to_string(), event: Some(event) }
}

/// With fields that events of other types have: here they mean nothing.
fn with_strays(kind: &str, data: &Value) -> Value {
    let strays = match kind {
        "chat.message_sent" => json!({"errorClass": "timeout", "declineCode": "stolen"}),
        "chat.message_failed" => json!({"regenerated": true, "streamed": true, "ttftMs": 5}),
        "chat.conversation_created" | "chat.conversation_deleted" => {
            json!({"provider": "openai", "fallbackFrom": "google", "inputTokens": 1000})
        }
        _ => {
            json!({"inputTokens": 1000, "costMicroUsd": 7, "conversationId": "conversation-1", "errorClass": "timeout"})
        }
    };
    let fields = [data, &strays].into_iter().filter_map(Value::as_object).flatten();
    Value::Object(fields.map(|(name, value)| (name.clone(), value.clone())).collect())
}

fn written(random: &mut Random, time: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(time) * 1_000_000).unwrap();
    let hours = if random.chance(20) { i8::try_from(random.below(20)).unwrap() - 10 } else { 0 };
    // Digits after the millisecond are cut off.
    let at = at.to_offset(time::UtcOffset::from_hms(hours, 0, 0).unwrap()) + time::Duration::microseconds(456);
    at.format(&Rfc3339).unwrap()
}

fn data(random: &mut Random, user: usize) -> (&'static str, Value) {
    let currency = random.of(&["USD", "EUR", "usd"]);
    let amount = random.below(5000);
    let invoice = if random.chance(80) { json!(format!("INV-{}", random.below(40))) } else { json!(null) };
    let conversation = format!("conversation-{}", random.below(60));
    match random.below(20) {
        0 => ("user.signup", json!({"method": "password"})),
        1 => ("user.signin", json!({"method": "password"})),
        2 => (random.of(&["user.signout", "user.password_reset"]), json!({})),
        3 => ("user.email_verified", json!({})),
        4 => (random.of(&["user.plan_upgraded", "user.plan_downgraded"]), json!({"fromPlan": "free", "toPlan": "pro"})),
        5 => ("chat.conversation_created", json!({"conversationId": conversation})),
        6 => ("chat.conversation_deleted", json!({"conversationId": conversation})),
        7..=11 => ("chat.message_sent", message(random, conversation)),
        12 => {
            let provider = random.of(&PROVIDERS);
            let priced = random.chance(50);
            let data = json!({
                "conversationId": if random.chance(50) { json!(null) } else { json!(conversation) },
                "provider": provider, "model": format!("{provider}-{}", random.below(3)), "requestedModel": "m",
                "errorClass": random.of(&ERRORS), "latencyMs": random.below(9000), "attempts": 1,
                "fallbackFrom": if random.chance(20) { json!("google") } else { json!(null) },
                "inputTokens": random.below(100), "cachedInputTokens": 0, "outputTokens": random.below(50),
                "reasoningTokens": 0, "costMicroUsd": if priced { json!(random.below(500)) } else { json!(null) },
            });
            ("chat.message_failed", data)
        }
        13 | 14 => (
            "billing.payment_succeeded",
            json!({"paymentId": "p", "invoiceId": invoice, "amountMinor": amount, "currency": currency}),
        ),
        15 => {
            let code = if random.chance(30) { json!(null) } else { json!(random.of(&["expired", "stolen"])) };
            let data = json!({
                "paymentId": "p", "invoiceId": invoice, "amountMinor": amount, "currency": currency,
                "declineCode": code,
            });
            ("billing.payment_failed", data)
        }
        16 => ("billing.payment_refunded", json!({"paymentId": "p", "amountMinor": amount, "currency": currency})),
        17 => subscription(random, user, currency, "created"),
        18 => subscription(random, user, currency, "updated"),
        _ => subscription(random, user, currency, "canceled"),
    }
}

fn message(random: &mut Random, conversation: String) -> Value {
    let provider = random.of(&PROVIDERS);
    let latency = 500 + random.below(9000);
    let priced = random.chance(80);
    json!({
        "conversationId": conversation, "messageId": "m", "provider": provider,
        "model": format!("{provider}-{}", random.below(3)), "requestedModel": "m",
        "inputTokens": random.below(3000), "cachedInputTokens": random.below(100),
        "outputTokens": random.below(2000), "reasoningTokens": random.below(50),
        "costMicroUsd": if priced { json!(random.below(90_000)) } else { json!(null) },
        "priceVersion": if priced { json!("v1") } else { json!(null) },
        "ttftMs": if random.chance(70) { json!(random.below(500)) } else { json!(null) },
        "latencyMs": latency, "finishReason": "stop", "attempts": 1 + random.below(3),
        "fallbackFrom": if random.chance(10) { json!("openai") } else { json!(null) },
        "streamed": random.chance(60), "regenerated": random.chance(15),
    })
}

fn subscription(random: &mut Random, user: usize, currency: &str, what: &str) -> (&'static str, Value) {
    let id = format!("Sub-{}", (user as u64 + random.below(2)) % 30);
    let status = random.of(&["active", "trialing", "past_due", "canceled", "incomplete", ""]);
    let delta = i64::try_from(random.below(3000)).unwrap();
    match what {
        "created" => (
            "billing.subscription_created",
            json!({
                "subscriptionId": id, "status": status, "movement": random.of(&["new", "reactivation"]),
                "mrrDeltaMinor": delta, "currency": currency,
            }),
        ),
        "updated" => (
            "billing.subscription_updated",
            json!({
                "subscriptionId": id, "status": status, "fromPlan": "free",
                "movement": random.of(&["expansion", "contraction", "none"]), "mrrDeltaMinor": delta - 1500,
                "currency": currency,
            }),
        ),
        _ => (
            "billing.subscription_canceled",
            json!({"subscriptionId": id, "movement": "churn", "mrrDeltaMinor": -delta, "currency": currency}),
        ),
    }
}
