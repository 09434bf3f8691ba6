//! Pages of Stripe's own: for paying, and for managing what is paid.

use serde_json::Value;
use uuid::Uuid;

use crate::billing::plan::Plan;
use crate::billing::service::Billing;
use crate::billing::stripe::Failure;
use crate::billing::subscription;
use crate::billing::sync;
use crate::error::{Code, Error, Result};
use crate::telemetry::trace::TraceContext;

impl Billing {
    /// The address of a page on which the user subscribes to a plan.
    ///
    /// # Errors
    /// 409 `already_subscribed`; 503 `stripe_unavailable`.
    pub async fn checkout(&self, user_id: Uuid, plan: Plan, trace: &TraceContext) -> Result<String> {
        let customer = self.customer(user_id).await?;
        let transaction = self.begin_for(user_id, trace).await?;
        let mut standing = self.refuse_second(transaction, user_id, &customer, None).await?;
        let first = !standing.has_subscribed && subscription::is_first(&mut standing.transaction, user_id).await?;
        sync::conclude(standing.transaction, user_id).await?;
        let mut form = vec![
            ("mode", "subscription".to_owned()),
            ("customer", customer),
            ("line_items[0][price]", self.price(plan).await?),
            ("line_items[0][quantity]", "1".to_owned()),
            ("success_url", format!("{}/billing?checkout=success", self.app_url)),
            ("cancel_url", format!("{}/billing?checkout=canceled", self.app_url)),
            ("payment_method_types[0]", "card".to_owned()),
            ("subscription_data[billing_mode][type]", "classic".to_owned()),
        ];
        if first {
            let without_card = "subscription_data[trial_settings][end_behavior][missing_payment_method]";
            form.extend(self.trial("subscription_data[trial_period_days]", without_card));
        }
        url(&self.stripe.post("/checkout/sessions", &form, &format!("checkout-{}", Uuid::now_v7())).await?)
    }

    /// The address of a page on which the user manages cards, invoices and the subscription.
    ///
    /// # Errors
    /// 503 `stripe_unavailable`, also where the account has no such page yet.
    pub async fn portal(&self, user_id: Uuid) -> Result<String> {
        let form =
            vec![("customer", self.customer(user_id).await?), ("return_url", format!("{}/billing", self.app_url))];
        let made = self.stripe.post("/billing_portal/sessions", &form, &format!("portal-{}", Uuid::now_v7())).await;
        url(&made.map_err(without_portal)?)
    }
}

/// The error of a portal that Stripe opens for nobody, which only its dashboard mends.
#[track_caller]
fn without_portal(failure: Failure) -> Error {
    match failure {
        Failure::Refused { status, code, .. } => {
            let cause = format!("Stripe opens no portal, {status} {code}: are its settings saved?");
            Error::caused(Code::StripeUnavailable, cause)
        }
        other => other.into(),
    }
}

fn url(session: &Value) -> Result<String> {
    let url = session["url"].as_str().map(str::to_owned);
    url.ok_or_else(|| Error::internal("Stripe made a session without an address"))
}
