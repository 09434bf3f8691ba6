//! What each of the four stores says of a person's billing: the API, Postgres, Stripe and ClickHouse.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::replica;
use crate::support::*;

/// A subscription in all stores: as it is and what of it was told.
#[derive(Debug, Clone)]
pub struct Expected {
    pub status: &'static str,
    pub plan: &'static str,
    pub pending: Option<&'static str>,
    pub ends: bool,
    /// The user's plan.
    pub entitled: &'static str,
    /// Every event so far, in any order, where that is known.
    pub told: Option<Vec<String>>,
}

pub async fn postgres() -> PgConnection {
    PgConnection::connect(&variable("DATABASE_URL")).await.unwrap()
}

/// One JSON value out of Postgres.
pub async fn row(sql: &'static str, bound: &str) -> Value {
    let mut connection = postgres().await;
    let found: Option<Value> = sqlx::query_scalar(sql).bind(bound).fetch_one(&mut connection).await.unwrap();
    found.unwrap_or(Value::Null)
}

/// Waits until all stores agree with what is expected and with each other; on the deadline the difference is told.
pub async fn agree(api: &Api, person: &Person, expected: &Expected) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let Err(difference) = compare(api, person, expected).await else { return };
        assert!(Instant::now() < deadline, "{difference}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The API comes last: who asks it again and again is refused for that.
async fn compare(api: &Api, person: &Person, expected: &Expected) -> Result<(), String> {
    let kept = row(
        "SELECT to_jsonb(s) || jsonb_build_object('period_start', extract(epoch FROM current_period_start)::bigint,
             'period_end', extract(epoch FROM current_period_end)::bigint)
         FROM subscriptions s WHERE user_id = $1::uuid",
        &person.id,
    )
    .await;
    same("status in Postgres", &kept["status"], &json!(expected.status))?;
    same("plan in Postgres", &kept["plan"], &json!(expected.plan))?;
    same("pending plan in Postgres", &kept["pending_plan"], &json!(expected.pending))?;
    same("end in Postgres", &kept["cancel_at_period_end"], &json!(expected.ends))?;
    let entitled = row("SELECT to_jsonb(plan) FROM users WHERE id = $1::uuid", &person.id).await;
    same("plan of the user in Postgres", &entitled, &json!(expected.entitled))?;
    if let Some(mut wanted) = expected.told.clone() {
        wanted.sort();
        same("events in ClickHouse", &json!(told(person).await), &json!(wanted))?;
    }
    let stripe = replica::subscription(person).await;
    let item = &stripe["items"]["data"][0];
    same("Stripe's id in Postgres", &kept["stripe_id"], &stripe["id"])?;
    same("status at Stripe", &stripe["status"], &kept["status"])?;
    same("end at Stripe", &stripe["cancel_at_period_end"], &kept["cancel_at_period_end"])?;
    let next = expected.pending.unwrap_or(expected.plan);
    same("plan at Stripe", &item["price"]["metadata"]["plan"], &json!(next))?;
    same("start of the period at Stripe", &item["current_period_start"], &kept["period_start"])?;
    same("end of the period at Stripe", &item["current_period_end"], &kept["period_end"])?;
    let customer = stripe["customer"].as_str().unwrap();
    let invoices = replica::get(&format!("/v1/invoices?limit=100&customer={customer}")).await;
    // What was paid there is certain: what the mirror lacks now, it may have when it is asked again below.
    let paid = invoices["data"].as_array().unwrap().iter().filter(|invoice| invoice["status"] == "paid");
    let paid: i64 = paid.map(|invoice| invoice["amount_paid"].as_i64().unwrap()).sum();
    let sums = clickhouse(&format!(
        "SELECT sum(mrr_delta_minor), sumIf(amount_minor, type = 'billing.payment_succeeded')
         FROM events FINAL WHERE subject = '{}' FORMAT JSONCompactEachRow SETTINGS output_format_json_quote_64bit_integers = 0",
        person.id
    ))
    .await;
    let sums: Value = serde_json::from_str(sums.trim()).unwrap();
    same("monthly revenue in ClickHouse", &sums[0], &kept["mrr_minor"])?;
    same("payments in ClickHouse", &sums[1], &paid.into())?;
    let mut invoices = rows(&invoices["data"], &["number", "status", "amount_due", "amount_paid", "currency"]);
    // A draft is nothing yet.
    invoices.retain(|row| !row.contains("draft"));
    let payments = replica::get(&format!("/v1/payment_intents?limit=100&customer={customer}")).await;
    let payments = rows(&payments["data"], &["amount", "currency", "status"]);
    let kept_rows = row(
        "SELECT jsonb_build_object(
             'invoices', (SELECT count(*) FROM invoices WHERE user_id = $1::uuid AND status <> 'draft'),
             'payments', (SELECT count(*) FROM payments WHERE user_id = $1::uuid))",
        &person.id,
    );
    let counts = json!({"invoices": invoices.len(), "payments": payments.len()});
    same("rows in Postgres", &kept_rows.await, &counts)?;

    let get = async |path: &str| api.get(path).bearer(&person.jwt).send().await.expect_status(200).body;
    let shown = get("/api/billing/subscriptions").await["subscriptions"].clone();
    same("subscriptions at the API", &shown.as_array().unwrap().len().into(), &json!(1))?;
    for (name, kept) in [
        ("status", &kept["status"]),
        ("plan", &kept["plan"]),
        ("pendingPlan", &kept["pending_plan"]),
        ("cancelAtPeriodEnd", &kept["cancel_at_period_end"]),
    ] {
        same(&format!("{name} at the API"), &shown[0][name], kept)?;
    }
    for (name, kept) in [("currentPeriodStart", &kept["period_start"]), ("currentPeriodEnd", &kept["period_end"])] {
        let format = &time::format_description::well_known::Rfc3339;
        let moment = time::OffsetDateTime::parse(shown[0][name].as_str().unwrap(), format).unwrap();
        same(&format!("{name} at the API"), &json!(moment.unix_timestamp()), kept)?;
    }
    let ours = get("/api/billing/invoices?limit=100").await;
    let ours = rows(&ours["invoices"], &["number", "status", "amountDue", "amountPaid", "currency"]);
    same("invoices", &json!(ours), &json!(invoices))?;
    let ours = get("/api/billing/payments?limit=100").await;
    same("payments", &json!(rows(&ours["payments"], &["amount", "currency", "status"])), &json!(payments))?;
    let me = get("/api/auth/me").await;
    same("plan of the user at the API", &me["user"]["plan"], &json!(expected.entitled))?;
    let limits = json!({"free": 50_000, "pro": 2_000_000, "enterprise": 20_000_000});
    let usage = get("/api/billing/usage").await;
    same("quota", &usage["tokens"]["limit"], &limits[expected.entitled])
}

/// Every event of billing about a person, and those of the plan, each as one line.
pub async fn told(person: &Person) -> Vec<String> {
    let lines = clickhouse(&format!(
        "SELECT arrayStringConcat(arrayFilter(word -> word != '', [
             replaceOne(replaceOne(type, 'billing.', ''), 'user.', ''), subscription_status, movement,
             if(mrr_delta_minor != 0, toString(mrr_delta_minor), ''), if(amount_minor != 0, toString(amount_minor), ''),
             decline_code, if(from_plan != '', from_plan || ' to ' || if(to_plan != '', to_plan, plan), plan)]), ' ')
         FROM events FINAL
         WHERE subject = '{}' AND (type LIKE 'billing.%' OR type LIKE 'user.plan_%') FORMAT TSV",
        person.id
    ))
    .await;
    let mut lines: Vec<_> = lines.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Some fields of each row, in upper case where cases differ, sorted.
fn rows(list: &Value, fields: &[&str]) -> Vec<String> {
    let field = |row: &Value, name: &str| match &row[name] {
        Value::String(text) if name == "currency" => text.to_uppercase(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let rows = list.as_array().unwrap().iter();
    let mut rows: Vec<String> =
        rows.map(|row| fields.iter().map(|name| field(row, name)).collect::<Vec<_>>().join(" ")).collect();
    rows.sort();
    rows
}

fn same(what: &str, found: &Value, wanted: &Value) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:#} instead of {wanted:#}")) }
}
