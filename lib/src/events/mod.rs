//! CloudEvents 1.0: what the product tells about itself, in the exact words of the analytics contract.

pub mod outbox;

use serde_json::{Map, Value, json};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::billing::plan::Plan;
use crate::clock;
use crate::store::queue::Outgoing;

/// The `source` of every event made here.
const SOURCE: &str = "/ai-chat-backend";
/// An event reported sooner keeps the time of reporting: another clock's whole seconds would lose the order.
const AT_ONCE: Duration = Duration::minutes(1);

/// Whom an event is about, and the circumstances that all events carry.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The user's id.
    pub user_id: Uuid,
    /// The user's plan at that moment.
    pub plan: Plan,
    /// ISO 3166-1 alpha-2, where the edge tells it.
    pub country: Option<String>,
}

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    /// UUIDv7; receivers count an id once.
    pub id: Uuid,
    /// The type, such as `user.signup`.
    pub kind: &'static str,
    /// The user's id.
    pub subject: Option<String>,
    /// When it happened.
    pub time: OffsetDateTime,
    /// The trace that it belongs to.
    pub traceparent: Option<String>,
    data: Map<String, Value>,
}

impl Event {
    /// An event about a user, happening now.
    #[must_use]
    pub fn about(subject: &Subject, kind: &'static str) -> Self {
        let mut event = Self::new(kind);
        event.subject = Some(subject.user_id.to_string());
        event.with("plan", subject.plan.as_str()).with("country", subject.country.as_deref())
    }

    /// A request's telemetry; whose request it was is not told.
    #[must_use]
    pub fn request_completed(data: Value) -> Self {
        let mut event = Self::new("http.request_completed").with("country", Value::Null);
        if let Value::Object(members) = data {
            event.data.extend(members);
        }
        event
    }

    fn new(kind: &'static str) -> Self {
        let mut data = Map::new();
        data.insert("schemaVersion".to_owned(), 1.into());
        Self { id: Uuid::now_v7(), kind, subject: None, time: clock::now(), traceparent: None, data }
    }

    /// Adds a field of `data`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.data.insert(name.to_owned(), value.into());
        self
    }

    /// The event as one that happened at another's moment, if that is known and was not just now.
    #[must_use]
    pub fn happened(self, moment: Option<OffsetDateTime>) -> Self {
        let just_now = self.time - AT_ONCE;
        self.at(moment.filter(|moment| *moment < just_now))
    }

    /// The event as one that happened at another's moment, if that is known, also where it was just now.
    #[must_use]
    pub fn at(mut self, moment: Option<OffsetDateTime>) -> Self {
        self.time = moment.map_or(self.time, |moment| moment.min(self.time));
        self
    }

    /// The event as its message.
    #[must_use]
    pub fn to_outgoing(&self) -> Outgoing {
        let mut envelope = json!({
            "specversion": "1.0",
            "id": self.id,
            "source": SOURCE,
            "type": self.kind,
            "subject": self.subject,
            "time": clock::rfc3339(self.time),
            "datacontenttype": "application/json",
            "data": self.data,
        });
        if let Some(traceparent) = &self.traceparent {
            envelope["traceparent"] = traceparent.as_str().into();
        }
        Outgoing { id: self.id, body: envelope.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_cloud_event() {
        let subject = Subject { user_id: Uuid::now_v7(), plan: Plan::Free, country: None };
        let event = Event::about(&subject, "user.signup").with("method", "password");
        let message: Value = serde_json::from_str(&event.to_outgoing().body).unwrap();
        assert_eq!(message["specversion"], "1.0");
        assert_eq!(message["type"], "user.signup");
        assert_eq!(message["subject"], subject.user_id.to_string());
        assert_eq!(message["data"], json!({"schemaVersion": 1, "plan": "free", "country": null, "method": "password"}));
    }

    #[test]
    fn what_is_told_late_counts_when_it_happened() {
        let told = Event::new("billing.payment_succeeded");
        let at = |moment| told.clone().happened(moment).time;
        let late = told.time - Duration::hours(9);
        assert_eq!(at(Some(late)), late);
        for moment in [None, Some(told.time - Duration::seconds(59)), Some(told.time + Duration::days(1))] {
            assert_eq!(at(moment), told.time, "{moment:?}");
        }
        let just_now = told.time - Duration::seconds(2);
        assert_eq!(told.clone().at(Some(just_now)).time, just_now);
        for moment in [None, Some(told.time + Duration::days(1))] {
            assert_eq!(told.clone().at(moment).time, told.time, "{moment:?}");
        }
    }
}
