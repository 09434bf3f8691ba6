//! Every figure by brute force over the distinct events, from the words of the contract and nothing else.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use lib::analytics::report::{Interval, Query};
use lib::analytics::users::CohortBy;
use serde_json::{Map, Value, json};
use time::{Date, Duration, OffsetDateTime};

use crate::history::{Message, Told};

const ACTIVE: [&str; 5] =
    ["user.signup", "user.signin", "chat.conversation_created", "chat.message_sent", "chat.message_failed"];
const SENT: &str = "chat.message_sent";
const FAILED: &str = "chat.message_failed";
const ALIVE: [&str; 3] = ["active", "trialing", "past_due"];

pub struct Oracle {
    events: Vec<Told>,
}

/// A quantile that an estimate may miss by one per cent of rank.
pub fn quantile(level: f64, mut values: Vec<i64>) -> Value {
    values.sort_unstable();
    json!({ "quantile": level, "of": values })
}

pub fn date(event: &Told) -> Date {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(event.time) * 1_000_000).unwrap().date()
}

fn text(event: &Told, field: &str) -> String {
    event.data[field].as_str().unwrap_or_default().to_owned()
}

fn int(event: &Told, field: &str) -> i64 {
    event.data[field].as_i64().unwrap_or_default()
}

fn currency(event: &Told) -> String {
    text(event, "currency").to_uppercase()
}

fn tokens(event: &Told) -> i64 {
    int(event, "inputTokens") + int(event, "outputTokens")
}

fn rate(part: f64, whole: f64) -> Value {
    if whole == 0.0 { Value::Null } else { json!(part / whole) }
}

fn sum(events: &[&Told], of: impl Fn(&Told) -> i64) -> i64 {
    events.iter().map(|event| of(event)).sum()
}

fn users(events: &[&Told]) -> usize {
    events.iter().map(|event| &event.subject).collect::<HashSet<_>>().len()
}

fn count(events: &[&Told], kind: &str) -> usize {
    events.iter().filter(|event| event.kind == kind).count()
}

fn key(event: &Told) -> (i64, u128) {
    (event.time, event.id)
}

fn monday(day: Date) -> Date {
    day - Duration::days(i64::from(day.weekday().number_days_from_monday()))
}

fn first_of_month(day: Date) -> Date {
    day.replace_day(1).unwrap()
}

fn shown(day: Date) -> String {
    let (year, month, day) = day.to_calendar_date();
    format!("{year:04}-{:02}-{day:02}", u8::from(month))
}

impl Oracle {
    /// Of the messages in the order of their arrival, the first valid event of each id.
    pub fn new(messages: &[Message]) -> Self {
        let mut seen = HashSet::new();
        let told = messages.iter().filter_map(|message| message.event.clone());
        Self { events: told.filter(|event| seen.insert(event.id)).collect() }
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    fn all(&self, keep: impl Fn(&Told) -> bool) -> Vec<&Told> {
        self.events.iter().filter(|event| keep(event)).collect()
    }

    fn range(&self, query: &Query, kinds: &[&str]) -> Vec<&Told> {
        let range = query.range;
        self.all(|event| kinds.contains(&event.kind.as_str()) && (range.from..=range.to).contains(&date(event)))
    }

    fn to_date(&self, query: &Query, kinds: &[&str]) -> Vec<&Told> {
        self.all(|event| kinds.contains(&event.kind.as_str()) && date(event) <= query.range.to)
    }

    /// Names of the buckets of the range, and the events in each.
    fn buckets<'e>(&self, query: &Query, events: &[&'e Told]) -> Vec<(String, Vec<&'e Told>)> {
        let mut names: Vec<String> = Vec::new();
        let mut day = query.range.from;
        while day <= query.range.to {
            match query.interval {
                Interval::Hour => names.extend((0..24).map(|hour| format!("{}T{hour:02}:00:00Z", shown(day)))),
                Interval::Day => names.push(shown(day)),
                Interval::Week => names.push(shown(monday(day))),
                Interval::Month => names.push(shown(first_of_month(day))),
            }
            day += Duration::days(1);
        }
        names.dedup();
        let name = |event: &Told| {
            let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(event.time) * 1_000_000).unwrap();
            match query.interval {
                Interval::Hour => format!("{}T{:02}:00:00Z", shown(at.date()), at.hour()),
                Interval::Day => shown(at.date()),
                Interval::Week => shown(monday(at.date())),
                Interval::Month => shown(first_of_month(at.date())),
            }
        };
        names
            .into_iter()
            .map(|bucket| (bucket.clone(), events.iter().copied().filter(|event| name(event) == bucket).collect()))
            .collect()
    }

    fn grouped<'e>(events: &[&'e Told], fields: &[&str]) -> BTreeMap<Vec<String>, Vec<&'e Told>> {
        let mut groups: BTreeMap<Vec<String>, Vec<&'e Told>> = BTreeMap::new();
        for event in events {
            let key = fields.iter().map(|field| text(event, field)).collect();
            groups.entry(key).or_default().push(event);
        }
        groups
    }

    /// The plan on each user's last event to date.
    fn plan(&self, query: &Query, subject: &str) -> String {
        let own = self.all(|event| event.subject == subject && date(event) <= query.range.to);
        own.into_iter().max_by_key(|event| key(event)).map(|event| text(event, "plan")).unwrap_or_default()
    }

    pub fn users_growth(&self, query: &Query) -> Value {
        let before = self.all(|event| event.kind == "user.signup" && date(event) < query.range.from).len();
        let mut total = before;
        let series = self.buckets(query, &self.range(query, &["user.signup"])).into_iter().map(|(name, events)| {
            total += events.len();
            json!({"date": name, "newUsers": events.len(), "totalUsers": total})
        });
        series.collect()
    }

    pub fn users_active(&self, query: &Query) -> Value {
        let to = query.range.to;
        let window = |days: i64| {
            users(&self.all(|event| {
                ACTIVE.contains(&event.kind.as_str()) && date(event) <= to && date(event) > to - Duration::days(days)
            }))
        };
        let today = self.all(|event| ACTIVE.contains(&event.kind.as_str()) && date(event) == to);
        let by_plan: Map<String, Value> = Self::grouped(&today, &["plan"])
            .into_iter()
            .map(|(plan, events)| (plan[0].clone(), json!(users(&events))))
            .collect();
        let series = self.buckets(query, &self.range(query, &ACTIVE));
        let series: Vec<Value> =
            series.into_iter().map(|(name, events)| json!({"date": name, "activeUsers": users(&events)})).collect();
        json!({
            "dau": window(1), "wau": window(7), "mau": window(30),
            "stickiness": rate(window(1) as f64, window(30) as f64), "byPlan": by_plan, "series": series,
        })
    }

    pub fn users_signups(&self, query: &Query) -> Value {
        let events = self.range(query, &["user.signup", "user.email_verified"]);
        let series = self.buckets(query, &events).into_iter().map(|(name, events)| {
            let (signups, verified) = (count(&events, "user.signup"), count(&events, "user.email_verified"));
            json!({"date": name, "signups": signups, "verified": verified})
        });
        series.collect()
    }

    pub fn users_top(&self, query: &Query) -> Value {
        let subjects: BTreeSet<&String> = self.range(query, &[SENT]).iter().map(|event| &event.subject).collect();
        let mut rows: Vec<(usize, String, Value)> = Vec::new();
        for subject in subjects {
            let own = |kinds: &[&str]| -> Vec<&Told> {
                self.range(query, kinds).into_iter().filter(|event| event.subject == *subject).collect()
            };
            let requests = own(&[SENT, FAILED]);
            let last = own(&ACTIVE).iter().map(|event| event.time).max().unwrap();
            let last = lib::clock::rfc3339(lib::clock::from_millis(last));
            let messages = count(&requests, SENT);
            let row = json!({
                "userId": subject, "plan": self.plan(query, subject), "messages": messages,
                "tokens": sum(&requests, tokens), "costMicroUsd": sum(&requests, |e| int(e, "costMicroUsd")),
                "lastActive": last,
            });
            rows.push((messages, subject.clone(), row));
        }
        rows.sort_by_key(|(messages, subject, _)| (Reverse(*messages), subject.clone()));
        rows.into_iter().take(usize::try_from(query.limit).unwrap()).map(|(.., row)| row).collect()
    }

    pub fn users_count(&self, query: &Query) -> Value {
        let signups = self.to_date(query, &["user.signup"]);
        let verified = users(&self.to_date(query, &["user.email_verified"]));
        let mut by_plan: BTreeMap<String, u64> = BTreeMap::new();
        for subject in signups.iter().map(|event| &event.subject).collect::<BTreeSet<_>>() {
            *by_plan.entry(self.plan(query, subject)).or_default() += 1;
        }
        json!({
            "total": signups.len(), "verified": verified, "unverified": signups.len().saturating_sub(verified),
            "byPlan": by_plan,
        })
    }

    /// The first sign-up ever of each user, if it is in the range.
    fn cohort_days(&self, query: &Query) -> BTreeMap<String, Date> {
        let mut first: BTreeMap<String, Date> = BTreeMap::new();
        for event in self.all(|event| event.kind == "user.signup") {
            let day = date(event);
            first.entry(event.subject.clone()).and_modify(|known| *known = day.min(*known)).or_insert(day);
        }
        first.retain(|_, day| (query.range.from..=query.range.to).contains(day));
        first
    }

    pub fn users_retention(&self, query: &Query, by: CohortBy) -> Value {
        let begin = |day: Date| if by == CohortBy::Week { monday(day) } else { first_of_month(day) };
        let mut cohorts: BTreeMap<Date, BTreeSet<String>> = BTreeMap::new();
        for (subject, day) in self.cohort_days(query) {
            cohorts.entry(begin(day)).or_default().insert(subject);
        }
        let active = self.to_date(query, &ACTIVE);
        let rows: Vec<Value> = cohorts
            .into_iter()
            .map(|(cohort, members)| {
                let mut periods = Vec::new();
                let mut start = cohort;
                for index in 0..12 {
                    if start > query.range.to {
                        break;
                    }
                    let back: HashSet<&String> = active
                        .iter()
                        .filter(|event| begin(date(event)) == start && members.contains(&event.subject))
                        .map(|event| &event.subject)
                        .collect();
                    let share = rate(back.len() as f64, members.len() as f64);
                    periods.push(json!({"index": index, "retained": back.len(), "rate": share}));
                    start = if by == CohortBy::Week {
                        start + Duration::days(7)
                    } else {
                        first_of_month(start + Duration::days(31))
                    };
                }
                json!({"cohort": shown(cohort), "size": members.len(), "periods": periods})
            })
            .collect();
        json!({ "cohorts": rows })
    }

    pub fn chat_activity(&self, query: &Query) -> Value {
        let events = self.range(query, &[SENT, FAILED, "chat.conversation_created"]);
        let series = self.buckets(query, &events).into_iter().map(|(name, events)| {
            let sent: Vec<&Told> = events.iter().copied().filter(|event| event.kind == SENT).collect();
            json!({
                "date": name, "messages": sent.len(), "conversations": count(&events, "chat.conversation_created"),
                "activeUsers": users(&sent), "errors": count(&events, FAILED),
            })
        });
        series.collect()
    }

    pub fn chat_tokens(&self, query: &Query) -> Value {
        let groups = Self::grouped(&self.range(query, &[SENT, FAILED]), &["plan"]);
        let mut rows: Vec<(i64, Value)> = groups
            .into_iter()
            .map(|(plan, events)| {
                let total = sum(&events, tokens);
                let row = json!({
                    "plan": plan[0], "inputTokens": sum(&events, |e| int(e, "inputTokens")),
                    "cachedInputTokens": sum(&events, |e| int(e, "cachedInputTokens")),
                    "outputTokens": sum(&events, |e| int(e, "outputTokens")),
                    "reasoningTokens": sum(&events, |e| int(e, "reasoningTokens")), "totalTokens": total,
                    "tokensPerUser": rate(total as f64, users(&events) as f64),
                });
                (total, row)
            })
            .collect();
        rows.sort_by_key(|(total, _)| Reverse(*total));
        rows.into_iter().map(|(_, row)| row).collect()
    }

    /// A table over requests: one row a key, ordered by one of its columns.
    fn table(&self, query: &Query, keys: &[&str], main: &str, row: impl Fn(&[&Told]) -> Value) -> Vec<Value> {
        let groups = Self::grouped(&self.range(query, &[SENT, FAILED]), keys);
        let mut rows: Vec<Value> = groups
            .into_iter()
            .map(|(key, events)| {
                let mut value = row(&events);
                for (name, part) in keys.iter().zip(key) {
                    value[name] = json!(part);
                }
                value
            })
            .collect();
        rows.sort_by_key(|row| Reverse(row[main].as_i64().unwrap()));
        rows
    }

    fn use_of(events: &[&Told]) -> Value {
        json!({
            "messages": count(events, SENT), "requests": events.len(), "tokens": sum(events, tokens),
            "costMicroUsd": sum(events, |e| int(e, "costMicroUsd")), "users": users(events),
        })
    }

    fn only(rows: Vec<Value>, columns: &[&str]) -> Value {
        let keep = |row: Value| -> Value {
            columns.iter().map(|column| ((*column).to_owned(), row[*column].clone())).collect::<Map<_, _>>().into()
        };
        rows.into_iter().map(keep).collect()
    }

    pub fn chat_by_provider(&self, query: &Query) -> Value {
        let rows = self.table(query, &["provider"], "messages", Self::use_of);
        Self::only(rows, &["provider", "messages", "tokens", "costMicroUsd", "users"])
    }

    pub fn chat_by_model(&self, query: &Query) -> Value {
        let rows = self.table(query, &["provider", "model"], "messages", Self::use_of);
        Self::only(rows, &["provider", "model", "messages", "tokens", "costMicroUsd", "users"])
    }

    pub fn chat_messages(&self, query: &Query) -> Value {
        let sent = self.range(query, &[SENT]);
        let failed = self.range(query, &[FAILED]).len();
        let written = sent.iter().filter(|event| event.data["regenerated"] == json!(false)).count() + failed;
        let window = |keep: &dyn Fn(Date) -> bool| self.all(|event| event.kind == SENT && keep(date(event))).len();
        let today = query.today;
        let last = |days: i64| window(&|day| day <= today && day > today - Duration::days(days));
        json!({
            "total": sent.len(), "today": window(&|day| day == today), "last7Days": last(7), "last30Days": last(30),
            "thisMonth": window(&|day| first_of_month(day) == first_of_month(today)),
            "byRole": {"user": written, "assistant": sent.len()}, "failed": failed,
        })
    }

    pub fn chat_conversations(&self, query: &Query) -> Value {
        let (created, deleted) = ("chat.conversation_created", "chat.conversation_deleted");
        let total = self.to_date(query, &[created]).len() as i64 - self.to_date(query, &[deleted]).len() as i64;
        let sent = self.range(query, &[SENT]);
        let lengths: Vec<i64> =
            Self::grouped(&sent, &["conversationId"]).values().map(|events| events.len() as i64).collect();
        let new = self.range(query, &[created]);
        let series: Vec<Value> = self
            .buckets(query, &new)
            .into_iter()
            .map(|(name, events)| json!({"date": name, "conversations": events.len()}))
            .collect();
        json!({
            "total": total, "active": lengths.len(), "new": new.len(),
            "avgMessages": rate(sent.len() as f64, lengths.len() as f64),
            "p50Messages": quantile(0.5, lengths.clone()), "p95Messages": quantile(0.95, lengths), "series": series,
        })
    }

    fn net(events: &[&Told]) -> i64 {
        sum(events, |event| match event.kind.as_str() {
            "billing.payment_succeeded" => int(event, "amountMinor"),
            "billing.payment_refunded" => -int(event, "amountMinor"),
            _ => 0,
        })
    }

    fn amount(events: &[&Told], kind: &str) -> i64 {
        sum(events, |event| if event.kind == kind { int(event, "amountMinor") } else { 0 })
    }

    pub fn revenue_total(&self, query: &Query) -> Value {
        let kinds = ["billing.payment_succeeded", "billing.payment_refunded"];
        let month = |event: &Told| first_of_month(date(event)) == first_of_month(query.today);
        let all = self.all(|event| kinds.contains(&event.kind.as_str()));
        let in_range = self.range(query, &kinds);
        let in_month: Vec<&Told> = all.iter().copied().filter(|event| month(event)).collect();
        let currencies: BTreeSet<String> = in_range.iter().chain(&in_month).map(|event| currency(event)).collect();
        let rows = currencies.into_iter().map(|code| {
            let own = |events: &[&'_ Told]| -> i64 {
                Self::net(&events.iter().copied().filter(|event| currency(event) == code).collect::<Vec<_>>())
            };
            let here: Vec<&Told> = in_range.iter().copied().filter(|event| currency(event) == code).collect();
            let today: Vec<&Told> = all.iter().copied().filter(|event| date(event) == query.today).collect();
            json!({
                "currency": code, "gross": Self::amount(&here, kinds[0]), "refunded": Self::amount(&here, kinds[1]),
                "net": own(&in_range), "today": own(&today), "thisMonth": own(&in_month),
            })
        });
        rows.collect()
    }

    const SUBSCRIPTION: [&'static str; 3] =
        ["billing.subscription_created", "billing.subscription_updated", "billing.subscription_canceled"];

    pub fn revenue_mrr(&self, query: &Query) -> Value {
        let all = self.to_date(query, &Self::SUBSCRIPTION);
        let currencies: BTreeSet<String> = all.iter().map(|event| currency(event)).collect();
        let rows = currencies.into_iter().map(|code| {
            let own: Vec<&Told> = all.iter().copied().filter(|event| currency(event) == code).collect();
            let before: Vec<&Told> = own.iter().copied().filter(|e| date(e) < query.range.from).collect();
            let within: Vec<&Told> = own.iter().copied().filter(|e| date(e) >= query.range.from).collect();
            let delta = |e: &Told| int(e, "mrrDeltaMinor");
            let moved = |movement: &str| {
                sum(&within, |e| if text(e, "movement") == movement { int(e, "mrrDeltaMinor") } else { 0 })
            };
            let (current, previous) = (sum(&own, delta), sum(&before, delta));
            let mut running = previous;
            let series: Vec<Value> = self
                .buckets(query, &within)
                .into_iter()
                .map(|(name, events)| {
                    running += sum(&events, delta);
                    json!({"date": name, "mrr": running})
                })
                .collect();
            let growth = if previous == 0 { Value::Null } else { json!(current as f64 / previous as f64 - 1.0) };
            json!({
                "currency": code, "current": current, "previous": previous, "growthRate": growth,
                "arr": 12 * current, "series": series,
                "movements": {
                    "new": moved("new"), "expansion": moved("expansion"), "contraction": moved("contraction"),
                    "churn": moved("churn"), "reactivation": moved("reactivation"),
                },
            })
        });
        rows.collect()
    }

    pub fn revenue_over_time(&self, query: &Query) -> Value {
        let kinds = ["billing.payment_succeeded", "billing.payment_refunded"];
        let events = self.range(query, &kinds);
        let currencies: BTreeSet<String> = events.iter().map(|event| currency(event)).collect();
        let mut rows = Vec::new();
        for (name, events) in self.buckets(query, &events) {
            for code in &currencies {
                let own: Vec<&Told> = events.iter().copied().filter(|event| currency(event) == *code).collect();
                rows.push(json!({
                    "date": name, "currency": code, "gross": Self::amount(&own, kinds[0]),
                    "refunded": Self::amount(&own, kinds[1]), "net": Self::net(&own), "payments": count(&own, kinds[0]),
                }));
            }
        }
        rows.into()
    }

    /// The last event of each subscription among those that are kept.
    fn states(&self, keep: impl Fn(&Told) -> bool) -> Vec<(String, &Told)> {
        let mut last: BTreeMap<String, &Told> = BTreeMap::new();
        let events = self.all(|event| Self::SUBSCRIPTION.contains(&event.kind.as_str()) && keep(event));
        for event in events {
            let known = last.entry(text(event, "subscriptionId").to_lowercase()).or_insert(event);
            if key(event) > key(known) {
                *known = event;
            }
        }
        last.into_values().map(|event| (Self::status(event), event)).collect()
    }

    fn status(event: &Told) -> String {
        if event.kind == Self::SUBSCRIPTION[2] { "canceled".to_owned() } else { text(event, "status") }
    }

    pub fn revenue_by_plan(&self, query: &Query) -> Value {
        let mut plans: BTreeMap<(String, String), (i64, u64)> = BTreeMap::new();
        for event in self.range(query, &["billing.payment_succeeded"]) {
            plans.entry((currency(event), text(event, "plan"))).or_default().0 += int(event, "amountMinor");
        }
        for (status, event) in self.states(|event| date(event) <= query.range.to) {
            if ALIVE.contains(&status.as_str()) {
                plans.entry((currency(event), text(event, "plan"))).or_default().1 += 1;
            }
        }
        let mut rows: Vec<_> = plans.into_iter().collect();
        rows.sort_by_key(|((code, plan), (revenue, _))| (code.clone(), Reverse(*revenue), plan.clone()));
        let rows = rows.into_iter().map(|((code, plan), (revenue, subscribers))| {
            json!({
                "plan": plan, "currency": code, "revenue": revenue, "subscribers": subscribers,
                "arpu": rate(revenue as f64, subscribers as f64),
            })
        });
        rows.collect()
    }

    pub fn revenue_ltv(&self, query: &Query) -> Value {
        let mut cohorts: BTreeMap<Date, BTreeSet<String>> = BTreeMap::new();
        for (subject, day) in self.cohort_days(query) {
            cohorts.entry(first_of_month(day)).or_default().insert(subject);
        }
        let paid = self.to_date(query, &["billing.payment_succeeded", "billing.payment_refunded"]);
        let subscribed = self.to_date(query, &Self::SUBSCRIPTION);
        let mut rows = Vec::new();
        for (cohort, members) in cohorts {
            let own: Vec<&Told> = paid.iter().copied().filter(|event| members.contains(&event.subject)).collect();
            let (mut subscribers, mut churned) = (0, 0);
            for member in &members {
                let last = subscribed.iter().filter(|e| e.subject == *member).max_by_key(|event| key(event));
                if let Some(last) = last {
                    subscribers += 1;
                    churned += u64::from(Self::status(last) == "canceled");
                }
            }
            let churn = if subscribers == 0 { None } else { Some(churned as f64 / f64::from(subscribers)) };
            for code in own.iter().map(|event| currency(event)).collect::<BTreeSet<_>>() {
                let own: Vec<&Told> = own.iter().copied().filter(|event| currency(event) == code).collect();
                let revenue = Self::net(&own);
                let arpu = revenue as f64 / members.len() as f64;
                let ltv = churn.map_or(Value::Null, |churn| rate(arpu, churn));
                rows.push(json!({
                    "cohort": shown(cohort), "currency": code, "users": members.len(), "revenue": revenue,
                    "arpu": arpu, "churnRate": churn, "ltv": ltv,
                }));
            }
        }
        rows.into()
    }

    pub fn revenue_subscriptions(&self, query: &Query) -> Value {
        let end = self.states(|event| date(event) <= query.range.to);
        let start = self.states(|event| date(event) < query.range.from);
        let in_state = |state: &str| end.iter().filter(|(status, _)| status == state).count();
        let at_start = start.iter().filter(|(status, _)| ALIVE.contains(&status.as_str())).count();
        let canceled = self.range(query, &Self::SUBSCRIPTION[2..]).len();
        let created = self.range(query, &Self::SUBSCRIPTION[..1]);
        let new = created.iter().filter(|event| text(event, "movement") == "new").count();
        let mrr = self.revenue_mrr(query);
        let by_currency: Vec<Value> = mrr
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                let start = row["previous"].as_f64().unwrap();
                let moved = |name: &str| row["movements"][name].as_f64().unwrap();
                let kept = start + moved("expansion") + moved("contraction") + moved("churn") + moved("reactivation");
                json!({
                    "currency": row["currency"], "netRevenueRetention": rate(kept, start),
                    "revenueChurnRate": rate(-(moved("churn") + moved("contraction")), start),
                })
            })
            .collect();
        json!({
            "active": in_state("active"), "trialing": in_state("trialing"), "pastDue": in_state("past_due"),
            "canceled": canceled, "new": new, "customerChurnRate": rate(canceled as f64, at_start as f64),
            "upgrades": self.range(query, &["user.plan_upgraded"]).len(),
            "downgrades": self.range(query, &["user.plan_downgraded"]).len(), "byCurrency": by_currency,
        })
    }

    pub fn revenue_failed_payments(&self, query: &Query) -> Value {
        let failed = self.range(query, &["billing.payment_failed"]);
        let mut first: BTreeMap<String, &Told> = BTreeMap::new();
        for event in self.to_date(query, &["billing.payment_failed"]) {
            let invoice = text(event, "invoiceId").to_lowercase();
            if !invoice.is_empty() {
                let known = first.entry(invoice).or_insert(event);
                if key(event) < key(known) {
                    *known = event;
                }
            }
        }
        let paid = self.to_date(query, &["billing.payment_succeeded"]);
        first.retain(|invoice, failure| {
            paid.iter().any(|e| text(e, "invoiceId").to_lowercase() == *invoice && key(e) > key(failure))
        });
        let currencies: BTreeSet<String> = failed.iter().map(|event| currency(event)).collect();
        let query = Query { interval: Interval::Day, ..*query };
        let mut rows = Vec::new();
        for (name, events) in self.buckets(&query, &failed) {
            for code in &currencies {
                let own: Vec<&Told> = events.iter().copied().filter(|event| currency(event) == *code).collect();
                let made_good: Vec<&Told> = first
                    .values()
                    .copied()
                    .filter(|event| shown(date(event)) == name && currency(event) == *code)
                    .collect();
                let mut codes: BTreeMap<String, u64> = BTreeMap::new();
                for event in &own {
                    let code = event.data["declineCode"].as_str().unwrap_or("unknown").to_owned();
                    *codes.entry(code).or_default() += 1;
                }
                rows.push(json!({
                    "date": name, "currency": code, "failedCount": own.len(),
                    "failedAmount": sum(&own, |e| int(e, "amountMinor")), "recoveredCount": made_good.len(),
                    "recoveredAmount": sum(&made_good, |e| int(e, "amountMinor")), "byDeclineCode": codes,
                }));
            }
        }
        rows.into()
    }

    pub fn providers_usage(&self, query: &Query) -> Value {
        let rows = self.table(query, &["provider"], "requests", Self::use_of);
        Self::only(rows, &["provider", "requests", "tokens", "costMicroUsd", "users"])
    }

    fn speed(events: &[&Told]) -> Value {
        let sent: Vec<&Told> = events.iter().copied().filter(|event| event.kind == SENT).collect();
        let latency: Vec<i64> = sent.iter().map(|event| int(event, "latencyMs")).collect();
        let ttft: Vec<i64> = sent.iter().filter_map(|event| event.data["ttftMs"].as_i64()).collect();
        let timed: Vec<&Told> = sent
            .iter()
            .copied()
            .filter(|event| event.data["streamed"] == json!(true) && !event.data["ttftMs"].is_null())
            .collect();
        let mut classes: BTreeMap<String, u64> = BTreeMap::new();
        for event in events.iter().filter(|event| event.kind == FAILED) {
            *classes.entry(text(event, "errorClass")).or_default() += 1;
        }
        let fallbacks = events.iter().filter(|event| !event.data["fallbackFrom"].is_null()).count();
        let spent = sum(&timed, |e| int(e, "latencyMs") - int(e, "ttftMs"));
        let produced = sum(&timed, |e| int(e, "outputTokens"));
        json!({
            "p50": quantile(0.5, latency.clone()), "p95": quantile(0.95, latency.clone()),
            "p99": quantile(0.99, latency), "ttftP50": quantile(0.5, ttft.clone()), "ttftP95": quantile(0.95, ttft),
            "tokensPerSecond": rate(produced as f64 * 1000.0, spent as f64),
            "errorRate": rate(count(events, FAILED) as f64, events.len() as f64), "byErrorClass": classes,
            "fallbackRate": rate(fallbacks as f64, events.len() as f64), "requests": events.len(),
            "tokens": sum(events, tokens), "costMicroUsd": sum(events, |e| int(e, "costMicroUsd")),
        })
    }

    pub fn providers_performance(&self, query: &Query) -> Value {
        let columns = [
            "provider",
            "p50",
            "p95",
            "p99",
            "ttftP50",
            "ttftP95",
            "tokensPerSecond",
            "errorRate",
            "byErrorClass",
            "fallbackRate",
        ];
        Self::only(self.table(query, &["provider"], "requests", Self::speed), &columns)
    }

    pub fn providers_cost(&self, query: &Query) -> Value {
        let rows = self.table(query, &["provider"], "costMicroUsd", |events| {
            let sent: Vec<&Told> = events.iter().copied().filter(|event| event.kind == SENT).collect();
            let priced = sent.iter().filter(|event| !event.data["costMicroUsd"].is_null()).count();
            json!({
                "costMicroUsd": sum(events, |e| int(e, "costMicroUsd")),
                "pricedShare": rate(priced as f64, sent.len() as f64), "unpricedRequests": sent.len() - priced,
            })
        });
        Self::only(rows, &["provider", "costMicroUsd", "pricedShare", "unpricedRequests"])
    }

    pub fn providers_popular_models(&self, query: &Query) -> Value {
        let mut rows = self.table(query, &["provider", "model"], "requests", Self::use_of);
        rows.truncate(usize::try_from(query.limit).unwrap());
        Self::only(rows, &["provider", "model", "requests", "users", "tokens"])
    }

    pub fn providers_models(&self, query: &Query, provider: &str) -> Value {
        let rows = self.table(query, &["provider", "model"], "requests", Self::speed);
        let own = rows.into_iter().filter(|row| row["provider"] == json!(provider)).collect();
        let columns = ["model", "requests", "tokens", "costMicroUsd", "p50", "p95", "ttftP95", "errorRate"];
        Self::only(own, &columns)
    }

    pub fn providers_usage_over_time(&self, query: &Query) -> Value {
        let events = self.range(query, &[SENT, FAILED]);
        let providers: BTreeSet<String> = events.iter().map(|event| text(event, "provider")).collect();
        let mut rows = Vec::new();
        for (name, events) in self.buckets(query, &events) {
            for provider in &providers {
                let own: Vec<&Told> = events.iter().copied().filter(|e| text(e, "provider") == *provider).collect();
                let fallbacks = own.iter().filter(|event| !event.data["fallbackFrom"].is_null()).count();
                rows.push(json!({
                    "bucket": name, "provider": provider, "requests": own.len(), "tokens": sum(&own, tokens),
                    "costMicroUsd": sum(&own, |e| int(e, "costMicroUsd")), "errors": count(&own, FAILED),
                    "fallbacks": fallbacks,
                }));
            }
        }
        rows.into()
    }

    pub fn providers_usage_by_plan(&self, query: &Query) -> Value {
        let rows = self.table(query, &["provider", "plan"], "requests", Self::use_of);
        Self::only(rows, &["provider", "plan", "requests", "tokens", "costMicroUsd"])
    }
}
