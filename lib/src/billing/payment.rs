//! Single payments: made at Stripe, shown from the mirror.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::billing::service::{Billing, LockTimeout};
use crate::billing::stripe::Failure;
use crate::billing::stripe_object;
use crate::error::{Error, Result};
use crate::http::page::{self, Cursor, Limit};
use crate::http::validate::{self, Field, Fields, FromFields, Invalid, Raw};
use crate::store::postgres::Database;
use crate::telemetry::trace::TraceContext;

/// A payment as the API shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Payment {
    /// The payment's id.
    pub id: Uuid,
    /// Minor units.
    pub amount: i64,
    /// ISO 4217.
    pub currency: String,
    /// Stripe's status.
    pub status: String,
    /// What the client wrote.
    pub description: Option<String>,
    /// Why the card was declined, if it was.
    pub decline_code: Option<String>,
    /// When it was made.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub created_at: OffsetDateTime,
}

/// Currencies that are taken, with the least amount that Stripe takes in minor units.
const CURRENCIES: [(&str, i64); 8] =
    [("USD", 50), ("EUR", 50), ("GBP", 30), ("CHF", 50), ("CAD", 50), ("AUD", 50), ("JPY", 50), ("SEK", 300)];
/// The most that Stripe takes.
const MOST: i64 = 99_999_999;

/// Minor units of a currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount(pub i64);

impl Field for Amount {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        match raw.integer()? {
            amount @ 1..=MOST => Ok(Self(amount)),
            _ => Err(Invalid::new("out_of_range", format!("Must be from 1 to {MOST} minor units."))),
        }
    }
}

/// A currency that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Currency(&'static str, i64);

impl Field for Currency {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let text = raw.text()?;
        let found = CURRENCIES.into_iter().find(|(code, _)| code.eq_ignore_ascii_case(text));
        found.map(|(code, least)| Self(code, least)).ok_or_else(|| {
            let codes = CURRENCIES.map(|(code, _)| code).join(", ");
            Invalid::new("unsupported", format!("Must be one of {codes}."))
        })
    }
}

/// What Stripe's ids of payment methods begin with. A card's number, sent by mistake, must not get into a path or log.
const METHOD_KINDS: [&str; 3] = ["pm_", "card_", "src_"];

/// Stripe's id of a payment method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentMethod(String);

impl PaymentMethod {
    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Field for PaymentMethod {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let text = raw.text()?;
        let rest = METHOD_KINDS.iter().find_map(|kind| text.strip_prefix(kind)).unwrap_or_default();
        let good = (1..=250).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if good { Ok(Self(text.to_owned())) } else { Err(Invalid::new("malformed", "Must be an id of Stripe.")) }
    }
}

/// What a payment is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description(pub String);

impl Field for Description {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        validate::bounded_text(raw, 0, 500).map(Self)
    }
}

/// A payment as the client asks for it.
#[derive(Debug)]
pub struct NewPayment {
    /// How much.
    pub amount: Amount,
    /// Of what.
    pub currency: Currency,
    /// With what.
    pub method: PaymentMethod,
    /// What for.
    pub description: Option<Description>,
}

/// A user's payments, newest first.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    database: &Database,
    user_id: Uuid,
    limit: Limit,
    after: Option<Cursor>,
) -> Result<(Vec<Payment>, Option<String>)> {
    let (at, id) = page::place(after);
    let rows = sqlx::query_as!(
        Payment,
        "SELECT id, amount, currency, status, description, decline_code, created_at
         FROM payments WHERE user_id = $1 AND (created_at, id) < ($2, $3)
         ORDER BY created_at DESC, id DESC LIMIT $4",
        user_id,
        at,
        id,
        limit.0 + 1,
    )
    .fetch_all(database.pool())
    .await?;
    Ok(page::split(rows, limit, |last| Cursor { at: last.created_at, id: last.id }))
}

impl FromFields for NewPayment {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let (amount, currency) = (fields.read::<Amount>("amount"), fields.read::<Currency>("currency"));
        if let (Some(Amount(amount)), Some(Currency(name, least))) = (amount, currency)
            && amount < least
        {
            let message = format!("Must be at least {least} minor units of {name}.");
            fields.refuse("amount", Invalid::new("out_of_range", message));
        }
        let (method, description) = (fields.read("payment_method_id"), fields.read("description"));
        Some(Self { amount: amount?, currency: currency?, method: method?, description: description? })
    }
}

impl Billing {
    /// Charges a card, once for all tries of the same request. The intent is made first and confirmed then, so that
    /// whatever gets lost on the way, there is something to ask Stripe about. Where the card's holder has to
    /// authenticate first, the secret given along completes the payment on the client's side.
    ///
    /// # Errors
    /// 402 `card_declined`; 400 for a method that does not exist; 503 `stripe_unavailable`.
    pub async fn pay(
        &self,
        user_id: Uuid,
        new: &NewPayment,
        operation: Uuid,
        trace: &TraceContext,
    ) -> Result<(Payment, Option<String>)> {
        let customer = self.customer(user_id).await?;
        let mut form = vec![
            ("amount", new.amount.0.to_string()),
            ("currency", new.currency.0.to_lowercase()),
            ("customer", customer.clone()),
            ("payment_method_types[]", "card".to_owned()),
            ("metadata[made_by]", operation.to_string()),
        ];
        form.extend(
            new.description.as_ref().filter(|text| !text.0.is_empty()).map(|text| ("description", text.0.clone())),
        );
        let made = || self.intent_of(&customer, operation);
        let made = self.stripe.post_once("/payment_intents", &form, &format!("pay-{operation}"), made).await;
        let made = made.map_err(|failure| of_amount(&failure).unwrap_or_else(|| failure.into()))?;
        let id = stripe_object::id_of(&made).ok_or_else(|| Error::internal("Stripe made a payment without an id"))?;
        let form = vec![("payment_method", new.method.as_str().to_owned())];
        let path = format!("/payment_intents/{id}/confirm");
        let confirmed = || self.intent_where(&id, was_tried);
        let outcome = match self.stripe.post_once(&path, &form, &format!("confirm-{operation}"), confirmed).await {
            // An earlier try was on its way still.
            Err(failure) if failure.has_code("payment_intent_unexpected_state") => Ok(Value::Null),
            Err(failure @ Failure::Refused { .. }) => {
                let path = format!("/payment_intents/{id}/cancel");
                let canceled = || self.intent_where(&id, |intent| intent["status"] == "canceled");
                self.stripe.post_once(&path, &[], &format!("give-up-{operation}"), canceled).await?;
                return Err(of_amount(&failure).unwrap_or_else(|| failure.of_method()));
            }
            outcome => outcome,
        };
        let mut transaction = self.begin_in_time(user_id, LockTimeout::Payer, trace).await?;
        let payment = self.mirror_payment(&mut transaction, user_id, &id).await?;
        let payment = payment.ok_or_else(|| Error::internal("Stripe lost the payment that it made"))?;
        transaction.commit().await?;
        match (payment.status.as_str(), outcome) {
            ("requires_payment_method", Err(Failure::Declined(code))) => {
                Err(Failure::Declined(payment.decline_code.or(code)).into())
            }
            ("requires_payment_method", _) if payment.decline_code.is_some() => {
                Err(Failure::Declined(payment.decline_code).into())
            }
            // It was not confirmed, and is not going to be.
            ("requires_payment_method" | "requires_confirmation", Err(failure)) => Err(failure.into()),
            ("requires_action", _) => Ok((payment, made["client_secret"].as_str().map(str::to_owned))),
            _ => Ok((payment, None)),
        }
    }

    /// The payment intent that an earlier try has made; if there are two, the one that was confirmed or is newer.
    async fn intent_of(&self, customer: &str, operation: Uuid) -> Result<Option<Value>, Failure> {
        let query = vec![("customer", customer.to_owned()), ("limit", "100".to_owned())];
        let mut found = self.stripe.get("/payment_intents", &query).await?;
        let intents = found["data"].as_array_mut().into_iter().flatten().map(Value::take);
        let own = intents.filter(|intent| intent["metadata"]["made_by"] == operation.to_string().as_str());
        // Stripe lists the newest first.
        Ok(own.min_by_key(|intent| !was_tried(intent)))
    }

    /// A payment intent, if it is as wanted.
    async fn intent_where(&self, id: &str, is_wanted: fn(&Value) -> bool) -> Result<Option<Value>, Failure> {
        let found = self.stripe.get(&format!("/payment_intents/{id}"), &[]).await?;
        Ok(Some(found).filter(is_wanted))
    }
}

/// Whether a payment was confirmed, whatever came of it.
fn was_tried(intent: &Value) -> bool {
    let waits = matches!(intent["status"].as_str(), Some("requires_payment_method" | "requires_confirmation"));
    !waits || intent["last_payment_error"].is_object()
}

/// The error of an amount that Stripe does not charge, such as less than its least in the currency that it pays out
/// in, if that is what failed.
fn of_amount(failure: &Failure) -> Option<Error> {
    let codes = [("amount_too_small", "less"), ("amount_too_large", "more")];
    let (_, than) = codes.into_iter().find(|(code, _)| failure.has_code(code))?;
    let message = format!("Is {than} than can be charged in this currency.");
    Some(Error::invalid_field("amount", "out_of_range", message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::Code;

    #[test]
    fn amounts_are_whole_and_of_a_size_that_can_be_charged() {
        for good in [json!(1), json!(2999), json!(MOST)] {
            assert!(Amount::parse(Raw::Json(&good)).is_ok(), "{good}");
        }
        for bad in
            [json!(0), json!(-1), json!(1.5), json!("100"), json!(MOST + 1), json!(1e300), json!(u64::MAX), json!(true)]
        {
            assert!(Amount::parse(Raw::Json(&bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn currencies_are_taken_in_any_case_and_no_others() {
        for good in ["usd", "USD", "eUr"] {
            assert!(Currency::parse(Raw::Text(good)).is_ok(), "{good}");
        }
        for bad in ["", "us", "usdt", "xxx", "BTC", "USD "] {
            assert!(Currency::parse(Raw::Text(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_bad_field_is_named_that_is_too_little_for_the_currency_too() {
        let bad = |body: Value| -> Vec<String> {
            let mut fields = Fields::body(body.as_object().unwrap());
            let parsed = NewPayment::from_fields(&mut fields);
            let error = fields.finish(parsed).unwrap_err();
            error.fields().iter().map(|field| field.field.clone()).collect()
        };
        let body =
            |amount: i64, method: &str| json!({ "amount": amount, "currency": "USD", "paymentMethodId": method });
        assert_eq!(bad(body(49, "pm_card_visa")), ["amount"]);
        assert_eq!(bad(body(49, "x")), ["amount", "paymentMethodId"]);
        assert_eq!(bad(json!({})), ["amount", "currency", "paymentMethodId"]);
    }

    #[test]
    fn what_stripe_does_not_charge_is_a_fault_of_the_amount() {
        let of = |code: &str| of_amount(&Failure::Refused { status: 400, code: code.to_owned(), param: None });
        for code in ["amount_too_small", "amount_too_large"] {
            assert_eq!(of(code).unwrap().code(), Code::ValidationFailed, "{code}");
        }
        assert!(of("other").is_none());
    }

    #[test]
    fn an_id_cannot_leave_its_place_in_a_path() {
        assert!(PaymentMethod::parse(Raw::Text("pm_card_visa")).is_ok());
        for bad in ["", "../customers", "pm_1/attach", "pm?x=1", "pm 1", "4242424242424242", "cus_1", "pm_"] {
            assert!(PaymentMethod::parse(Raw::Text(bad)).is_err(), "{bad}");
        }
    }
}
