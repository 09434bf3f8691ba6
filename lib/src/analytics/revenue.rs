//! Figures about money: what is paid, what recurs, and who leaves. Currencies are never mixed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use crate::analytics::report::{Interval, Query, Reports, bucket, day, grain, in_range, ratio};
use crate::clock;
use crate::error::Result;

/// What was paid in a currency.
#[derive(Debug, clickhouse::Row, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub struct Total {
    currency: String,
    gross: i64,
    refunded: i64,
    net: i64,
    today: i64,
    this_month: i64,
}

/// Monthly recurring revenue in a currency.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mrr {
    currency: String,
    current: i64,
    previous: i64,
    growth_rate: Option<f64>,
    arr: i64,
    movements: Movements,
    series: Vec<MrrBucket>,
}

/// Changes of recurring revenue, by cause.
#[derive(Debug, Serialize)]
pub struct Movements {
    new: i64,
    expansion: i64,
    contraction: i64,
    churn: i64,
    reactivation: i64,
}

/// Recurring revenue at the end of a bucket.
#[derive(Debug, Serialize)]
pub struct MrrBucket {
    date: String,
    mrr: i64,
}

/// What was paid in a bucket and currency.
#[derive(Debug, Serialize)]
pub struct RevenueBucket {
    date: String,
    currency: String,
    gross: i64,
    refunded: i64,
    net: i64,
    payments: u64,
}

/// What a plan brings in a currency.
#[derive(Debug, Serialize)]
pub struct PlanRevenue {
    plan: String,
    currency: String,
    revenue: i64,
    subscribers: u64,
    arpu: Option<f64>,
}

/// What the users of a month have paid since.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LifetimeValue {
    cohort: String,
    currency: String,
    users: u64,
    revenue: i64,
    arpu: Option<f64>,
    churn_rate: Option<f64>,
    ltv: Option<f64>,
}

/// Subscriptions at the end of the range, and what became of them in it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscriptions {
    active: u64,
    trialing: u64,
    past_due: u64,
    canceled: u64,
    new: u64,
    customer_churn_rate: Option<f64>,
    upgrades: u64,
    downgrades: u64,
    by_currency: Vec<CurrencyRetention>,
}

/// How much of a currency's recurring revenue stayed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CurrencyRetention {
    currency: String,
    revenue_churn_rate: Option<f64>,
    net_revenue_retention: Option<f64>,
}

/// Failed payments of a day and currency, and which of them were made good.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedPayments {
    date: String,
    currency: String,
    failed_count: u64,
    failed_amount: i64,
    recovered_count: u64,
    recovered_amount: i64,
    by_decline_code: BTreeMap<String, u64>,
}

/// Recurring revenue of a currency: before the range, by movement in it, and per bucket.
#[derive(Default)]
struct Recurring {
    before: i64,
    movements: HashMap<String, i64>,
    new: u64,
    buckets: HashMap<i64, i64>,
}

impl Recurring {
    fn of(&self, movement: &str) -> i64 {
        self.movements.get(movement).copied().unwrap_or_default()
    }

    fn current(&self) -> i64 {
        self.before + self.movements.values().sum::<i64>()
    }
}

impl Reports {
    /// `GET /api/analytics/revenue/total`: what was paid, per currency.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revenue_total(&self, query: &Query) -> Result<Vec<Total>> {
        let sql = "WITH toDate(hour) BETWEEN {from:Date} AND {to:Date} AS in_range,
                toDate(hour) BETWEEN toStartOfMonth({today:Date}) AND toLastDayOfMonth({today:Date}) AS in_month
             SELECT toString(currency) AS currency, sumIf(revenue_analytics.gross, in_range) AS gross,
                sumIf(revenue_analytics.refunded, in_range) AS refunded,
                sumIf(revenue_analytics.gross - revenue_analytics.refunded, in_range) AS net,
                sumIf(revenue_analytics.gross - revenue_analytics.refunded, toDate(hour) = {today:Date}) AS today,
                sumIf(revenue_analytics.gross - revenue_analytics.refunded, in_month) AS this_month
             FROM revenue_analytics WHERE grain = 'day' AND (in_range OR in_month)
             GROUP BY currency ORDER BY currency";
        self.rows(sql, query).await
    }

    /// `GET /api/analytics/revenue/mrr`: recurring revenue, per currency.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revenue_mrr(&self, query: &Query) -> Result<Vec<Mrr>> {
        let currencies = self.recurring(query).await?.into_iter().map(|(currency, recurring)| {
            let current = recurring.current();
            let mut mrr = recurring.before;
            let series = query.buckets().into_iter().map(|bucket| {
                mrr += recurring.buckets.get(&bucket.key()).copied().unwrap_or_default();
                MrrBucket { date: bucket.name(), mrr }
            });
            Mrr {
                series: series.collect(),
                currency,
                current,
                previous: recurring.before,
                growth_rate: ratio((current - recurring.before) as f64, recurring.before as f64),
                arr: 12 * current,
                movements: Movements {
                    new: recurring.of("new"),
                    expansion: recurring.of("expansion"),
                    contraction: recurring.of("contraction"),
                    churn: recurring.of("churn"),
                    reactivation: recurring.of("reactivation"),
                },
            }
        });
        Ok(currencies.collect())
    }

    async fn recurring(&self, query: &Query) -> Result<BTreeMap<String, Recurring>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            bucket: i64,
            currency: String,
            movement: String,
            delta: i64,
            events: u64,
        }
        let sql = concat!(
            "SELECT if(toDate(hour) < {from:Date}, -1, ",
            bucket!("hour"),
            ") AS bucket, toString(currency) AS currency, toString(movement) AS movement,
                sum(mrr_metrics.delta) AS delta, sum(mrr_metrics.events) AS events
             FROM mrr_metrics WHERE ",
            grain!(),
            " AND toDate(hour) <= {to:Date} GROUP BY bucket, currency, movement",
        );
        let rows: Vec<Row> = self.rows(sql, query).await?;
        let mut currencies: BTreeMap<String, Recurring> = BTreeMap::new();
        for row in rows {
            let recurring = currencies.entry(row.currency).or_default();
            if row.bucket == -1 {
                recurring.before += row.delta;
                continue;
            }
            *recurring.buckets.entry(row.bucket).or_default() += row.delta;
            if row.movement == "new" {
                recurring.new += row.events;
            }
            *recurring.movements.entry(row.movement).or_default() += row.delta;
        }
        Ok(currencies)
    }

    /// `GET /api/analytics/revenue/over-time`: what was paid, per bucket and currency.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revenue_over_time(&self, query: &Query) -> Result<Vec<RevenueBucket>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            bucket: i64,
            currency: String,
            gross: i64,
            refunded: i64,
            payments: u64,
        }
        let sql = concat!(
            "SELECT ",
            bucket!("hour"),
            " AS bucket, toString(currency) AS currency, sum(revenue_analytics.gross) AS gross,
                sum(revenue_analytics.refunded) AS refunded, sum(revenue_analytics.payments) AS payments
             FROM revenue_analytics WHERE ",
            in_range!(),
            " GROUP BY bucket, currency",
        );
        let rows: Vec<Row> = self.rows(sql, query).await?;
        let currencies: BTreeSet<String> = rows.iter().map(|row| row.currency.clone()).collect();
        let rows: HashMap<(i64, String), Row> =
            rows.into_iter().map(|row| ((row.bucket, row.currency.clone()), row)).collect();
        let mut series = Vec::new();
        for bucket in query.buckets() {
            for currency in &currencies {
                let row = rows.get(&(bucket.key(), currency.clone()));
                let (gross, refunded) = row.map_or((0, 0), |row| (row.gross, row.refunded));
                series.push(RevenueBucket {
                    date: bucket.name(),
                    currency: currency.clone(),
                    gross,
                    refunded,
                    net: gross - refunded,
                    payments: row.map_or(0, |row| row.payments),
                });
            }
        }
        Ok(series)
    }

    /// `GET /api/analytics/revenue/by-plan`: what each plan brings, per currency.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revenue_by_plan(&self, query: &Query) -> Result<Vec<PlanRevenue>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Revenue {
            currency: String,
            plan: String,
            gross: i64,
        }
        #[derive(clickhouse::Row, Deserialize)]
        struct Subscribers {
            currency: String,
            plan: String,
            count: u64,
        }
        let revenue = "SELECT toString(currency) AS currency, toString(plan) AS plan,
                sum(revenue_analytics.gross) AS gross
             FROM revenue_analytics WHERE grain = 'day' AND toDate(hour) BETWEEN {from:Date} AND {to:Date}
             GROUP BY currency, plan HAVING sum(payments) > 0";
        let subscribers = "SELECT state.5 AS currency, state.4 AS plan, count() AS count
             FROM (SELECT max(last) AS state FROM churn_metrics WHERE day <= {to:Date} GROUP BY subscription_id)
             WHERE state.3 IN ('active', 'trialing', 'past_due') GROUP BY currency, plan";
        let (revenue, subscribers) = futures_util::try_join!(
            self.rows::<Revenue>(revenue, query),
            self.rows::<Subscribers>(subscribers, query)
        )?;
        let mut plans: BTreeMap<(String, String), (i64, u64)> = BTreeMap::new();
        for row in revenue {
            plans.entry((row.currency, row.plan)).or_default().0 = row.gross;
        }
        for row in subscribers {
            plans.entry((row.currency, row.plan)).or_default().1 = row.count;
        }
        let mut rows: Vec<PlanRevenue> = plans
            .into_iter()
            .map(|((currency, plan), (revenue, subscribers))| PlanRevenue {
                plan,
                currency,
                revenue,
                subscribers,
                arpu: ratio(revenue as f64, subscribers as f64),
            })
            .collect();
        // Stable, so plans of equal revenue stay in their order.
        rows.sort_by(|a, b| a.currency.cmp(&b.currency).then(b.revenue.cmp(&a.revenue)));
        Ok(rows)
    }

    /// `GET /api/analytics/revenue/ltv`: what the users of each month have paid since, per currency.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revenue_ltv(&self, query: &Query) -> Result<Vec<LifetimeValue>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Users {
            cohort: i64,
            users: u64,
            subscribers: u64,
            churned: u64,
        }
        #[derive(clickhouse::Row, Deserialize)]
        struct Revenue {
            cohort: i64,
            currency: String,
            net: i64,
        }
        let query = &Query { interval: Interval::Month, ..*query };
        let users = concat!(
            "WITH subscribers AS (
                SELECT sipHash64(subject) AS user, max(last).3 AS status, true AS subscribed
                FROM churn_metrics WHERE day <= {to:Date} GROUP BY user
             )
             SELECT ",
            bucket!("first"),
            " AS cohort, count() AS users, countIf(subscribed) AS subscribers, countIf(status = 'canceled') AS churned
             FROM (SELECT user, min(signup) AS first FROM user_retention GROUP BY user) AS cohorts
             LEFT JOIN subscribers ON subscribers.user = cohorts.user
             WHERE toDate(first) BETWEEN {from:Date} AND {to:Date} GROUP BY cohort",
        );
        let revenue = concat!(
            "SELECT ",
            bucket!("first"),
            " AS cohort, toString(currency) AS currency,
                sum(revenue_by_country.gross) - sum(revenue_by_country.refunded) AS net
             FROM revenue_by_country
             INNER JOIN (
                SELECT user, min(signup) AS first FROM user_retention GROUP BY user
                HAVING toDate(first) BETWEEN {from:Date} AND {to:Date}
             ) AS cohorts ON cohorts.user = sipHash64(revenue_by_country.subject)
             WHERE day <= {to:Date}
             GROUP BY cohort, currency HAVING sum(payments) + sum(refunds) > 0 ORDER BY cohort, currency",
        );
        let (users, revenue) =
            futures_util::try_join!(self.rows::<Users>(users, query), self.rows::<Revenue>(revenue, query))?;
        let users: HashMap<i64, Users> = users.into_iter().map(|row| (row.cohort, row)).collect();
        let rows = revenue.into_iter().filter_map(|row| {
            let cohort = users.get(&row.cohort)?;
            let arpu = ratio(row.net as f64, cohort.users as f64);
            let churn_rate = ratio(cohort.churned as f64, cohort.subscribers as f64);
            Some(LifetimeValue {
                cohort: day(clock::from_millis(row.cohort * 1000).date()),
                currency: row.currency,
                users: cohort.users,
                revenue: row.net,
                arpu,
                churn_rate,
                ltv: arpu.zip(churn_rate).and_then(|(arpu, churn_rate)| ratio(arpu, churn_rate)),
            })
        });
        Ok(rows.collect())
    }

    /// `GET /api/analytics/revenue/subscriptions`: subscriptions and how many of them stayed.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revenue_subscriptions(&self, query: &Query) -> Result<Subscriptions> {
        #[derive(clickhouse::Row, Deserialize)]
        struct States {
            active: u64,
            trialing: u64,
            past_due: u64,
            canceled: u64,
            at_start: u64,
        }
        #[derive(clickhouse::Row, Deserialize)]
        struct Changes {
            upgrades: u64,
            downgrades: u64,
        }
        let states = "SELECT countIf(state = 'active') AS active, countIf(state = 'trialing') AS trialing,
                countIf(state = 'past_due') AS past_due, sum(canceled_in_range) AS canceled,
                countIf(before IN ('active', 'trialing', 'past_due')) AS at_start
             FROM (
                SELECT max(last).3 AS state, maxIf(last, day < {from:Date}).3 AS before,
                    sumIf(cancels, day >= {from:Date}) AS canceled_in_range
                FROM churn_metrics WHERE day <= {to:Date} GROUP BY subscription_id
             )";
        let changes =
            "SELECT sum(daily_active_users.upgrades) AS upgrades, sum(daily_active_users.downgrades) AS downgrades
             FROM daily_active_users WHERE grain = 'day' AND toDate(hour) BETWEEN {from:Date} AND {to:Date}";
        let (states, changes, recurring) = futures_util::try_join!(
            self.row::<States>(states, query),
            self.row::<Changes>(changes, query),
            self.recurring(query),
        )?;
        Ok(Subscriptions {
            active: states.active,
            trialing: states.trialing,
            past_due: states.past_due,
            canceled: states.canceled,
            new: recurring.values().map(|currency| currency.new).sum(),
            customer_churn_rate: ratio(states.canceled as f64, states.at_start as f64),
            upgrades: changes.upgrades,
            downgrades: changes.downgrades,
            by_currency: recurring
                .into_iter()
                .map(|(currency, recurring)| {
                    let start = recurring.before;
                    let lost = -(recurring.of("churn") + recurring.of("contraction"));
                    let kept = start + recurring.of("expansion") + recurring.of("reactivation") - lost;
                    CurrencyRetention {
                        currency,
                        revenue_churn_rate: ratio(lost as f64, start as f64),
                        net_revenue_retention: ratio(kept as f64, start as f64),
                    }
                })
                .collect(),
        })
    }

    /// `GET /api/analytics/revenue/failed-payments`: failed payments per day and currency.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revenue_failed_payments(&self, query: &Query) -> Result<Vec<FailedPayments>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Failed {
            bucket: i64,
            currency: String,
            decline_code: String,
            count: u64,
            amount: i64,
        }
        #[derive(clickhouse::Row, Deserialize)]
        struct Recovered {
            bucket: i64,
            currency: String,
            count: u64,
            amount: i64,
        }
        let query = &Query { interval: Interval::Day, ..*query };
        let failed = concat!(
            "SELECT ",
            bucket!("toDateTime(day, 'UTC')"),
            " AS bucket, toString(currency) AS currency, toString(decline_code) AS decline_code,
                sum(failed) AS count, sum(failed_amount) AS amount
             FROM revenue_by_country WHERE day BETWEEN {from:Date} AND {to:Date}
             GROUP BY bucket, currency, decline_code HAVING count > 0",
        );
        let recovered = concat!(
            "SELECT ",
            bucket!("tupleElement(first, 1)"),
            " AS bucket, tupleElement(first, 4) AS currency, count() AS count, sum(tupleElement(first, 3)) AS amount
             FROM (
                SELECT max(last_success) AS paid,
                    minIf((first_failure.1, first_failure.2, first_failure.3, toString(currency)), failed > 0) AS first
                FROM revenue_by_country
                PREWHERE day <= {to:Date} AND invoice_id IN (
                    SELECT invoice_id FROM revenue_by_country
                    WHERE day BETWEEN {from:Date} AND {to:Date} AND failed > 0 AND invoice_id != ''
                )
                GROUP BY invoice_id
             )
             WHERE paid > (tupleElement(first, 1), tupleElement(first, 2))
                AND toDate(tupleElement(first, 1)) BETWEEN {from:Date} AND {to:Date}
             GROUP BY bucket, currency",
        );
        let (failed, recovered) =
            futures_util::try_join!(self.rows::<Failed>(failed, query), self.rows::<Recovered>(recovered, query))?;
        let currencies: BTreeSet<String> = failed.iter().map(|row| row.currency.clone()).collect();
        let mut rows: HashMap<(i64, String), FailedPayments> = HashMap::new();
        for row in failed {
            let payments = rows.entry((row.bucket, row.currency)).or_default();
            payments.failed_count += row.count;
            payments.failed_amount += row.amount;
            *payments.by_decline_code.entry(row.decline_code).or_default() += row.count;
        }
        for row in recovered {
            let payments = rows.entry((row.bucket, row.currency)).or_default();
            payments.recovered_count += row.count;
            payments.recovered_amount += row.amount;
        }
        let mut series = Vec::new();
        for bucket in query.buckets() {
            for currency in &currencies {
                let payments = rows.remove(&(bucket.key(), currency.clone())).unwrap_or_default();
                series.push(FailedPayments { date: bucket.name(), currency: currency.clone(), ..payments });
            }
        }
        Ok(series)
    }
}
