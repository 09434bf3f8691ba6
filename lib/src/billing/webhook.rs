//! Webhooks: noted once, queued, and handled by reading the object that they are about.

use std::slice;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::billing::service::Billing;
use crate::billing::signature;
use crate::billing::stripe_object;
use crate::billing::sync::Kind;
use crate::clock;
use crate::config::Secret;
use crate::error::{Code, Error, Result};
use crate::http::request::Request;
use crate::secrets;
use crate::store::postgres::Database;
use crate::telemetry::trace::TraceContext;

/// A message of the queue: an object to be read anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// Stripe's id of the event.
    pub event_id: String,
    /// What kind of object changed.
    pub kind: Kind,
    /// Which one.
    pub object_id: String,
}

impl Notice {
    /// What an event is about; `None` if it is about nothing that is mirrored.
    #[must_use]
    pub fn of(event: &Value) -> Option<Self> {
        let object = &event["data"]["object"];
        let event_type = event["type"].as_str()?;
        let object_id = match event_type {
            "checkout.session.completed" => stripe_object::id_of(&object["subscription"]),
            _ if event_type.starts_with("charge.") => stripe_object::id_of(&object["payment_intent"]),
            _ => object["id"].as_str().map(str::to_owned),
        };
        // It becomes part of a path.
        let plain = |id: &String| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let event_id = event["id"].as_str()?.to_owned();
        Some(Self { event_id, kind: kind_of(event_type)?, object_id: object_id.filter(plain)? })
    }
}

/// The types of events that are handled, as the operators' guide asks for them and as Stripe lists them, and what they
/// are about. An event that is handled and not asked for would count as lost each time.
pub(super) const TYPES: [(&str, Kind); 5] = [
    ("customer.subscription.*", Kind::Subscription),
    ("invoice.*", Kind::Invoice),
    ("payment_intent.*", Kind::Payment),
    ("charge.refunded", Kind::Payment),
    ("checkout.session.completed", Kind::Subscription),
];

/// The kind of object that events of a type are about.
pub(super) fn kind_of(event_type: &str) -> Option<Kind> {
    let is_one = |pattern: &str| match pattern.strip_suffix('*') {
        Some(beginning) => event_type.starts_with(beginning),
        None => event_type == pattern,
    };
    TYPES.iter().find(|(pattern, _)| is_one(pattern)).map(|(_, kind)| *kind)
}

#[derive(Deserialize)]
struct WebhookSecret {
    secret: Secret,
}

/// The receiving side.
pub struct Webhooks {
    database: Database,
    secret: Secret,
}

impl Webhooks {
    /// Reads the signing secret from the secret named by `STRIPE_WEBHOOK_SECRET_ARN`; connects lazily.
    ///
    /// # Errors
    /// When a secret is missing.
    pub async fn init() -> Result<Self> {
        let (database, secret) =
            futures_util::try_join!(Database::init(), secrets::read::<WebhookSecret>("STRIPE_WEBHOOK_SECRET_ARN"))?;
        Ok(Self { database, secret: secret.secret })
    }

    /// Checks the signature, notes the event and queues it, both or neither.
    ///
    /// # Errors
    /// 400 `invalid_signature` or `invalid_json`.
    pub async fn receive(&self, request: &Request) -> Result<()> {
        signature::verify(request.header("stripe-signature"), &request.body, self.secret.expose(), clock::now())?;
        let event: Value = serde_json::from_slice(&request.body)
            .map_err(|_| Error::new(Code::InvalidJson, "The body must be JSON in UTF-8."))?;
        let Some(notice) = Notice::of(&event) else { return Ok(()) };
        let mut transaction = self.database.begin(&request.trace).await?;
        // An event that is known but unhandled, perhaps found only in Stripe's list, is queued again.
        let unhandled = sqlx::query!(
            "INSERT INTO stripe_events (id, kind, object_id) VALUES ($1, $2, $3)
             ON CONFLICT (id) DO UPDATE SET object_id = excluded.object_id WHERE stripe_events.processed_at IS NULL",
            notice.event_id,
            event["type"].as_str(),
            notice.object_id,
        )
        .execute(transaction.connection())
        .await?;
        if unhandled.rows_affected() > 0 {
            transaction.send_notice(&notice)?;
        }
        transaction.commit().await
    }
}

impl Billing {
    /// Handles a notice: whatever has happened to the object since, the mirror is what it is now.
    ///
    /// # Errors
    /// When the database or Stripe does not answer; the notice comes again.
    pub async fn handle(&self, notice: &Notice) -> Result<()> {
        self.sync(notice.kind, &notice.object_id, &TraceContext::begin()).await?;
        self.handled(slice::from_ref(&notice.event_id)).await
    }

    /// Notes that events were handled.
    pub(super) async fn handled(&self, events: &[String]) -> Result<()> {
        sqlx::query!("UPDATE stripe_events SET processed_at = now() WHERE id = ANY($1)", events)
            .execute(self.database.pool())
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finds_the_object_that_an_event_is_about() {
        let about = |kind: &str, object: Value| {
            Notice::of(&json!({"id": "evt_1", "type": kind, "data": {"object": object}})).map(|n| (n.kind, n.object_id))
        };
        let is = |kind, id: &str| Some((kind, id.to_owned()));
        assert_eq!(about("customer.subscription.deleted", json!({"id": "sub_1"})), is(Kind::Subscription, "sub_1"));
        assert_eq!(about("invoice.paid", json!({"id": "in_1"})), is(Kind::Invoice, "in_1"));
        assert_eq!(about("payment_intent.succeeded", json!({"id": "pi_1"})), is(Kind::Payment, "pi_1"));
        let refunded = json!({"id": "ch_1", "payment_intent": {"id": "pi_1"}});
        assert_eq!(about("charge.refunded", refunded), is(Kind::Payment, "pi_1"));
        let session = json!({"id": "cs_1", "subscription": "sub_1"});
        assert_eq!(about("checkout.session.completed", session), is(Kind::Subscription, "sub_1"));
        assert_eq!(about("checkout.session.completed", json!({"id": "cs_1", "subscription": null})), None);
        assert_eq!(about("invoice.paid", json!({"id": "../x"})), None);
        for kind in ["balance.available", "charge.refund.updated", "charge.succeeded", "invoice_payment.paid"] {
            assert_eq!(about(kind, json!({"id": "b", "payment_intent": "pi_1"})), None, "{kind}");
        }
        assert_eq!(Notice::of(&json!([])), None);
    }

    #[test]
    fn the_guide_asks_for_the_types_that_are_handled() {
        let guide = include_str!("../../../docs/operations.md");
        let sentence = guide.split_once("/api/billing/webhook` with the events ").unwrap().1;
        let sentence = sentence.split_once(", and give its signing secret").unwrap().0;
        let asked: Vec<_> = sentence.split('`').skip(1).step_by(2).collect();
        assert_eq!(asked, TYPES.map(|(pattern, _)| pattern));
    }
}
