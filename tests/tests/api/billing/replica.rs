//! The local Stripe, asked directly.

use serde_json::Value;

use crate::support::*;

fn url(path: &str) -> String {
    format!("{}{path}", variable("STRIPE_URL").trim_end_matches('/'))
}

async fn answer(call: reqwest::RequestBuilder) -> Value {
    call.bearer_auth("sk_test_local").send().await.unwrap().json().await.unwrap()
}

pub async fn get(path: &str) -> Value {
    answer(client().get(url(path))).await
}

pub async fn control(path: &str, body: &Value) -> Value {
    let reply = client().post(url(&format!("/_replica/{path}"))).body(body.to_string()).send().await.unwrap();
    assert!(reply.status().is_success(), "{path} {body}: {}", reply.text().await.unwrap());
    reply.json().await.unwrap()
}

/// Stripe's id of a person as a customer.
pub async fn customer(person: &Person) -> String {
    let found = get(&format!("/v1/customers?email={}", person.email.replace('@', "%40"))).await;
    found["data"][0]["id"].as_str().unwrap_or_else(|| panic!("no customer: {found}")).to_owned()
}

/// The one subscription of a person at Stripe.
pub async fn subscription(person: &Person) -> Value {
    let found = get(&format!("/v1/subscriptions?status=all&customer={}", customer(person).await)).await;
    assert_eq!(found["data"].as_array().unwrap().len(), 1, "{found}");
    found["data"][0].clone()
}

/// What a customer has paid, and how much of it was given back, in minor units.
pub async fn charged(customer: &str) -> Vec<(i64, i64)> {
    let charges = get(&format!("/v1/charges?customer={customer}")).await;
    let paid = charges["data"].as_array().unwrap().iter().filter(|charge| charge["status"] == "succeeded");
    let amount = |charge: &Value, name: &str| charge[name].as_i64().unwrap();
    let mut amounts: Vec<_> =
        paid.map(|charge| (amount(charge, "amount"), amount(charge, "amount_refunded"))).collect();
    amounts.sort_unstable();
    amounts
}

/// Fills in one of Stripe's own pages.
pub async fn submit(url: &str, form: &str) {
    let call = client().post(url).header("content-type", "application/x-www-form-urlencoded");
    let reply = call.body(form.to_owned()).send().await.unwrap();
    assert!(reply.status().is_redirection(), "{url}: {}", reply.text().await.unwrap());
}

/// What Stripe's library does in a client: completes a payment by its secret. The intent, or the error.
pub async fn complete(client_secret: &str, method: &str) -> Value {
    let intent = client_secret.split_once("_secret_").unwrap().0;
    post(&format!("/v1/payment_intents/{intent}/confirm"), &format!("payment_method={method}")).await
}

pub async fn post(path: &str, form: &str) -> Value {
    let call = client().post(url(path)).header("content-type", "application/x-www-form-urlencoded");
    answer(call.body(form.to_owned())).await
}

pub async fn delete(path: &str) -> Value {
    answer(client().delete(url(path))).await
}
