//! A history to look at and to measure with: users who sign up, chat, pay, change their plans and leave.
//!
//! The same number on the same day makes the same events with the same ids, so that telling it twice counts once.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;

use lib::clock;
use serde_json::{Value, json};
use uuid::{Builder, Uuid};

/// Days before today that the history covers.
pub const DAYS: usize = 180;
const DAY_MILLIS: i64 = 86_400_000;
/// Days from one invoice to the next.
const PERIOD: usize = 30;

/// Provider, model, and price of a token in millionths of a dollar.
const MODELS: [(&str, &[(&str, u64)]); 3] = [
    ("openai", &[("gpt-4", 45), ("gpt-4o-mini", 2)]),
    ("anthropic", &[("claude-sonnet-4-5", 9), ("claude-haiku-4-5", 3)]),
    ("google", &[("gemini-2.5-pro", 7), ("gemini-2.5-flash", 1)]),
];
/// Where users are, and what they pay in.
const COUNTRIES: [(&str, &str); 8] = [
    ("US", "USD"),
    ("US", "USD"),
    ("US", "USD"),
    ("DE", "EUR"),
    ("FR", "EUR"),
    ("GB", "GBP"),
    ("IN", "USD"),
    ("", "USD"),
];
const ERRORS: [&str; 5] = ["rate_limit", "timeout", "server_error", "context_length", "content_filter"];
const DECLINES: [&str; 3] = ["\"insufficient_funds\"", "\"expired_card\"", "null"];

/// One event as a message of the queue.
pub struct Told {
    /// The event's id.
    pub id: Uuid,
    /// When it happened, in milliseconds since the epoch.
    pub time: i64,
    /// The event in JSON.
    pub body: String,
}

/// The events as SQS hands them to a function, each sent when it happened.
#[must_use]
pub fn delivery(told: &[Told]) -> Value {
    let record = |told: &Told| {
        json!({
            "messageId": told.id.to_string(),
            "body": told.body,
            "attributes": { "SentTimestamp": told.time.to_string(), "ApproximateReceiveCount": "1" },
            "eventSource": "aws:sqs",
        })
    };
    json!({ "Records": told.iter().map(record).collect::<Vec<_>>() })
}

/// xorshift64*: fast, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True so many times in a thousand.
    fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// About as often below the middle of the bounds as above, seldom near them.
    fn around(&mut self, low: u64, high: u64) -> u64 {
        (0..4).map(|_| self.between(low, high)).sum::<u64>() / 4
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plan {
    Free,
    Pro,
    Enterprise,
}

impl Plan {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Pro => "pro",
            Self::Enterprise => "enterprise",
        }
    }

    /// Minor units a month.
    const fn price(self) -> i64 {
        match self {
            Self::Free => 0,
            Self::Pro => 2999,
            Self::Enterprise => 9999,
        }
    }
}

/// Somebody with an own taste, and perhaps a subscription.
struct User {
    subject: Uuid,
    country: &'static str,
    currency: &'static str,
    provider: usize,
    plan: Plan,
    conversation: Uuid,
    subscription: Uuid,
    was_subscriber: bool,
}

/// Day by day, so that events come in the order of their time.
pub struct History {
    random: Random,
    count: usize,
    first_day: i64,
    day: usize,
    given: usize,
    users: Vec<User>,
    /// Whose invoice is due, by day.
    renewals: BTreeMap<usize, Vec<usize>>,
    made: Vec<Told>,
    ready: VecDeque<Told>,
    /// When what is told just now happens, in milliseconds of its day.
    moment: u64,
}

impl History {
    /// So many events, up to the end of yesterday.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let today = clock::millis(clock::now()).div_euclid(DAY_MILLIS);
        let mut random = Random((count as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        Self {
            random,
            count,
            first_day: (today - DAYS as i64) * DAY_MILLIS,
            day: 0,
            given: 0,
            users: Vec::new(),
            renewals: BTreeMap::new(),
            made: Vec::new(),
            ready: VecDeque::new(),
            moment: 0,
        }
    }

    /// Events up to the end of the day: later days have more of them, four times as many at the end.
    fn due(&self, day: usize) -> usize {
        let weight = |days: usize| days as f64 + 1.5 * (days * days) as f64 / DAYS as f64;
        (self.count as f64 * weight(day + 1) / weight(DAYS)).round() as usize
    }

    fn tell_day(&mut self) {
        let wanted = self.due(self.day) - self.given;
        for user in self.renewals.remove(&self.day).unwrap_or_default() {
            self.renew(user);
        }
        while self.made.len() < wanted {
            if self.users.is_empty() || self.random.chance(40) {
                self.sign_up();
            }
            // Those who came lately come more often.
            let user = self.random.below(self.users.len() as u64).max(self.random.below(self.users.len() as u64));
            self.session(user as usize);
        }
        // What is too much for this day is told late, on the next one.
        let mut late = self.made.split_off(wanted);
        late.truncate(self.count - self.given - wanted);
        self.made.sort_by_key(|told| (told.time, told.id));
        self.ready.extend(std::mem::replace(&mut self.made, late));
        self.given += wanted;
        self.day += 1;
    }

    fn sign_up(&mut self) {
        self.begin();
        let subject = self.id();
        let (country, currency) = self.random.of(&COUNTRIES);
        let provider = self.random.of(&[0, 0, 0, 0, 0, 1, 1, 1, 2, 2]);
        let nothing = Uuid::nil();
        let user = self.users.len();
        self.users.push(User {
            subject,
            country,
            currency,
            provider,
            plan: Plan::Free,
            conversation: nothing,
            subscription: nothing,
            was_subscriber: false,
        });
        self.tell(user, "user.signup", r#","method":"password""#);
        if self.random.chance(800) {
            self.tell(user, "user.email_verified", "");
        }
    }

    fn session(&mut self, user: usize) {
        self.begin();
        self.tell(user, "user.signin", r#","method":"password""#);
        if self.users[user].conversation.is_nil() || self.random.chance(500) {
            let conversation = self.id();
            self.users[user].conversation = conversation;
            self.tell(user, "chat.conversation_created", &format!(r#","conversationId":"{conversation}""#));
        }
        for _ in 0..self.random.between(1, 8) {
            self.request(user);
        }
        if self.random.chance(15) {
            let conversation = std::mem::take(&mut self.users[user].conversation);
            self.tell(user, "chat.conversation_deleted", &format!(r#","conversationId":"{conversation}""#));
        }
        match self.users[user].plan {
            Plan::Free if self.random.chance(10) => self.subscribe(user),
            Plan::Pro if self.random.chance(3) => self.change_plan(user, Plan::Enterprise),
            Plan::Enterprise if self.random.chance(3) => self.change_plan(user, Plan::Pro),
            _ => {}
        }
    }

    fn request(&mut self, user: usize) {
        let provider = if self.random.chance(800) { self.users[user].provider } else { self.random.below(3) as usize };
        let (provider, models) = MODELS[provider];
        let (model, price) = self.random.of(models);
        let latency = self.random.around(400, 6000) * self.random.between(1, 3) / 2;
        let fallback = if self.random.chance(10) { "\"openai\"" } else { "null" };
        let mut data = String::with_capacity(512);
        let _ = write!(
            data,
            r#","conversationId":"{}","provider":"{provider}","model":"{model}","requestedModel":"{model}","latencyMs":{latency},"attempts":1,"fallbackFrom":{fallback}"#,
            self.users[user].conversation,
        );
        if self.random.chance(20) {
            let class = self.random.of(&ERRORS);
            let _ = write!(
                data,
                r#","errorClass":"{class}","inputTokens":0,"cachedInputTokens":0,"outputTokens":0,"reasoningTokens":0,"costMicroUsd":null"#
            );
            return self.tell(user, "chat.message_failed", &data);
        }
        let (input, output) = (self.random.between(20, 2000), self.random.between(10, 900));
        let cached = if self.random.chance(200) { input / 2 } else { 0 };
        let _ = write!(
            data,
            r#","messageId":"{}","inputTokens":{input},"cachedInputTokens":{cached},"outputTokens":{output},"reasoningTokens":0,"costMicroUsd":{},"priceVersion":"seed","ttftMs":{},"finishReason":"stop","streamed":{},"regenerated":{}"#,
            self.id(),
            (input + output) * price,
            latency / 4,
            self.random.chance(700),
            self.random.chance(50),
        );
        self.tell(user, "chat.message_sent", &data);
    }

    fn subscribe(&mut self, user: usize) {
        let plan = if self.random.chance(850) { Plan::Pro } else { Plan::Enterprise };
        let subscription = self.id();
        let movement = if self.users[user].was_subscriber { "reactivation" } else { "new" };
        let user_of = &mut self.users[user];
        (user_of.plan, user_of.subscription, user_of.was_subscriber) = (plan, subscription, true);
        self.tell(user, "user.plan_upgraded", &format!(r#","fromPlan":"free","toPlan":"{}""#, plan.as_str()));
        self.recur(user, "created", &format!(r#""status":"active","movement":"{movement}""#), plan.price());
        self.pay(user);
    }

    fn change_plan(&mut self, user: usize, plan: Plan) {
        let before = std::mem::replace(&mut self.users[user].plan, plan);
        let delta = plan.price() - before.price();
        let (kind, movement) =
            if delta > 0 { ("user.plan_upgraded", "expansion") } else { ("user.plan_downgraded", "contraction") };
        let (from, to) = (before.as_str(), plan.as_str());
        self.tell(user, kind, &format!(r#","fromPlan":"{from}","toPlan":"{to}""#));
        let status = format!(r#""status":"active","fromPlan":"{from}","movement":"{movement}""#);
        self.recur(user, "updated", &status, delta);
    }

    fn renew(&mut self, user: usize) {
        self.begin();
        if !self.random.chance(80) {
            return self.pay(user);
        }
        let plan = self.users[user].plan;
        self.recur(user, "canceled", r#""movement":"churn""#, -plan.price());
        self.users[user].plan = Plan::Free;
        self.tell(user, "user.plan_downgraded", &format!(r#","fromPlan":"{}","toPlan":"free""#, plan.as_str()));
    }

    fn recur(&mut self, user: usize, what: &str, status: &str, delta: i64) {
        let User { subscription, currency, .. } = self.users[user];
        let data =
            format!(r#","subscriptionId":"{subscription}",{status},"mrrDeltaMinor":{delta},"currency":"{currency}""#);
        self.tell(user, &format!("billing.subscription_{what}"), &data);
    }

    fn pay(&mut self, user: usize) {
        let User { plan, currency, .. } = self.users[user];
        let amount = format!(r#""amountMinor":{},"currency":"{currency}""#, plan.price());
        let bill = format!(r#""invoiceId":"{}",{amount}"#, self.id());
        if self.random.chance(60) {
            let (payment, code) = (self.id(), self.random.of(&DECLINES));
            let failure = format!(r#","paymentId":"{payment}",{bill},"declineCode":{code}"#);
            self.tell(user, "billing.payment_failed", &failure);
        }
        let payment = self.id();
        self.tell(user, "billing.payment_succeeded", &format!(r#","paymentId":"{payment}",{bill}"#));
        if self.random.chance(20) {
            self.tell(user, "billing.payment_refunded", &format!(r#","paymentId":"{payment}",{amount}"#));
        }
        self.renewals.entry(self.day + PERIOD).or_default().push(user);
    }

    fn tell(&mut self, user: usize, kind: &str, data: &str) {
        let id = self.id();
        let time = self.time();
        // Something happens every half minute, on this day still.
        self.moment = (self.moment + self.random.between(1, 60_000)).min(DAY_MILLIS.unsigned_abs() - 1);
        let User { subject, country, plan, .. } = self.users[user];
        let country = if country.is_empty() { "null".to_owned() } else { format!("\"{country}\"") };
        let body = format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/seed","type":"{kind}","subject":"{subject}","time":"{}","datacontenttype":"application/json","data":{{"schemaVersion":1,"plan":"{}","country":{country}{data}}}}}"#,
            clock::rfc3339(clock::from_millis(time)),
            plan.as_str(),
        );
        self.made.push(Told { id, time, body });
    }

    /// Somebody comes, by day rather than by night.
    fn begin(&mut self) {
        self.moment = self.random.around(0, DAY_MILLIS.unsigned_abs() - 1);
    }

    fn time(&self) -> i64 {
        self.first_day + self.day as i64 * DAY_MILLIS + self.moment.cast_signed()
    }

    /// A UUIDv7 of the moment.
    fn id(&mut self) -> Uuid {
        let mut random = [0; 10];
        random[..8].copy_from_slice(&self.random.next().to_le_bytes());
        random[8..].copy_from_slice(&self.random.next().to_le_bytes()[..2]);
        Builder::from_unix_timestamp_millis(self.time().unsigned_abs(), &random).into_uuid()
    }
}

impl Iterator for History {
    type Item = Told;

    fn next(&mut self) -> Option<Told> {
        while self.ready.is_empty() && self.day < DAYS {
            self.tell_day();
        }
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lib::analytics::event::Event;

    use super::*;

    #[test]
    fn tells_as_many_valid_events_as_were_asked_for_and_the_same_again() {
        for count in [1, 100, 20_000] {
            let told: Vec<Told> = History::new(count).collect();
            assert_eq!(told.len(), count);
            let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
            for told in &told {
                let event =
                    Event::parse(&told.body, Some(told.time)).unwrap_or_else(|why| panic!("{why}: {}", told.body));
                assert_eq!((event.id, event.time, event.clamped), (told.id.as_u128(), told.time, false));
                *kinds.entry(told.body.split(r#""type":""#).nth(1).unwrap().split('"').next().unwrap()).or_default() +=
                    1;
            }
            assert!(History::new(count).zip(&told).all(|(again, told)| again.body == told.body));
            if count == 20_000 {
                assert!(kinds.len() >= 10, "{kinds:?}");
            }
        }
    }
}
