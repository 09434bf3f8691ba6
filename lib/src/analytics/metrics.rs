//! What Prometheus scrapes: totals over all functions, from the events that they publish.

use std::fmt::Write;

use futures_util::future::try_join4;
use serde::Deserialize;

use crate::config::Secret;
use crate::crypto;
use crate::error::Result;
use crate::http::Request;
use crate::secrets;
use crate::store::clickhouse::{ClickHouse, in_time};
use crate::store::postgres::Database;

/// Upper bounds of the duration buckets, in seconds, as the view counts them.
const BOUNDS: [&str; 11] = ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10"];

#[derive(Deserialize)]
struct MetricsTokenSecret {
    token: Secret,
}

/// Reads the totals.
pub struct Metrics {
    clickhouse: ClickHouse,
    database: Database,
    token: Secret,
}

#[derive(clickhouse::Row, Deserialize)]
struct Requests {
    route: String,
    method: String,
    status: i64,
    count: u64,
    duration_ms: i64,
    buckets: Vec<u64>,
}

#[derive(clickhouse::Row, Deserialize)]
struct Recent {
    in_flight: f64,
    error_ratio: f64,
}

#[derive(clickhouse::Row, Deserialize)]
struct Ingested {
    events: u64,
    clamped: u64,
}

impl Metrics {
    /// Reads the secrets; connects on first use.
    ///
    /// # Errors
    /// When a secret cannot be read.
    pub async fn init() -> Result<Self> {
        let (clickhouse, database, secret) = futures_util::try_join!(
            ClickHouse::reader(),
            Database::init(),
            secrets::read::<MetricsTokenSecret>("METRICS_TOKEN_SECRET_ARN"),
        )?;
        Ok(Self::new(clickhouse, database, secret.token))
    }

    /// Metrics of these stores, for whoever has the token.
    #[must_use]
    pub fn new(clickhouse: ClickHouse, database: Database, token: Secret) -> Self {
        Self { clickhouse, database, token }
    }

    /// Admits an admin's session or the scrape token, which is a bearer but no session's.
    ///
    /// # Errors
    /// 401 or 403.
    pub fn authorise(&self, request: &Request) -> Result<()> {
        let (scheme, token) = request.header("authorization").and_then(|v| v.split_once(' ')).unwrap_or_default();
        let expected = self.token.expose();
        let is_scraper = scheme.eq_ignore_ascii_case("bearer")
            && !expected.is_empty()
            && crypto::equal(&crypto::sha256(token.trim().as_bytes()), &crypto::sha256(expected.as_bytes()));
        if is_scraper { Ok(()) } else { request.admin().map(drop) }
    }

    /// The text in Prometheus's exposition format, version 0.0.4.
    ///
    /// # Errors
    /// When a store does not answer.
    pub async fn render(&self) -> Result<String> {
        let totals = try_join4(self.requests(), self.recent(), self.ingested(), self.dead_letters());
        let (requests, recent, ingested, dead) = in_time(totals).await?;
        Ok(text(&requests, &recent, &ingested, dead))
    }

    async fn requests(&self) -> Result<Vec<Requests>> {
        let sql = "SELECT route, method, status, sum(events) AS count, sum(request_totals.duration_ms) AS duration_ms,
                arrayMap(bound -> arraySum((over, n) -> if(over < bound, n, 0), groupArray(over_ms), groupArray(events)),
                    [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000]) AS buckets
             FROM request_totals WHERE type = 'http.request_completed'
             GROUP BY route, method, status ORDER BY route, method, status";
        Ok(self.clickhouse.client().query(sql).fetch_all().await?)
    }

    /// Little's law gives the concurrency of the last minute: the time that its requests took over its length.
    async fn recent(&self) -> Result<Recent> {
        let sql = "SELECT
                sumIf(duration_ms, time > now64(3) - INTERVAL 1 MINUTE) / 60000 AS in_flight,
                if(count() = 0, 0, countIf(http_status >= 500) / count()) AS error_ratio
             FROM events
             WHERE type = 'http.request_completed' AND time > now64(3) - INTERVAL 5 MINUTE
               -- The ids of our own functions are UUIDv7, which begin with the milliseconds of their making.
               AND id >= bitShiftLeft(toUInt128(toUnixTimestamp64Milli(now64(3) - INTERVAL 10 MINUTE)), 80)";
        Ok(self.clickhouse.client().query(sql).fetch_one().await?)
    }

    async fn ingested(&self) -> Result<Ingested> {
        let sql =
            "SELECT sum(request_totals.events) AS events, sum(request_totals.clamped) AS clamped FROM request_totals";
        Ok(self.clickhouse.client().query(sql).fetch_one().await?)
    }

    async fn dead_letters(&self) -> Result<i64> {
        Ok(sqlx::query_scalar!("SELECT messages FROM dead_letter_total").fetch_one(self.database.pool()).await?)
    }
}

fn text(requests: &[Requests], recent: &Recent, ingested: &Ingested, dead: i64) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, lines: &dyn Fn(&mut String)| {
        // Writing into a string cannot fail.
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        lines(&mut out);
    };
    family("http_requests_total", "counter", "Requests answered, by canonical route.", &|out| {
        for r in requests {
            let labels = labels(r);
            let _ = writeln!(out, "http_requests_total{{{labels}}} {}", r.count);
        }
    });
    family("http_request_duration_seconds", "histogram", "Time from event to reply in the function.", &|out| {
        for r in requests {
            let labels = labels(r);
            for (bound, count) in BOUNDS.iter().zip(&r.buckets) {
                let _ = writeln!(out, "http_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(out, "http_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}", r.count);
            let seconds = r.duration_ms as f64 / 1000.0;
            let _ = writeln!(out, "http_request_duration_seconds_sum{{{labels}}} {seconds}");
            let _ = writeln!(out, "http_request_duration_seconds_count{{{labels}}} {}", r.count);
        }
    });
    family("http_requests_in_flight", "gauge", "Mean concurrency over the last minute.", &|out| {
        let _ = writeln!(out, "http_requests_in_flight {}", recent.in_flight);
    });
    family("http_error_ratio", "gauge", "Share of 5xx replies over the last five minutes.", &|out| {
        let _ = writeln!(out, "http_error_ratio {}", recent.error_ratio);
    });
    family("events_ingested_total", "counter", "Distinct events counted.", &|out| {
        let _ = writeln!(out, "events_ingested_total {}", ingested.events);
    });
    family("events_clamped_total", "counter", "Events whose time was set back to when they were sent.", &|out| {
        let _ = writeln!(out, "events_clamped_total {}", ingested.clamped);
    });
    let help = "Messages of the events queue that were rejected, or given up after their last delivery failed.";
    family("events_dead_letter_total", "counter", help, &|out| {
        let _ = writeln!(out, "events_dead_letter_total {dead}");
    });
    out
}

fn labels(requests: &Requests) -> String {
    let (route, method) = (escape(&requests.route), escape(&requests.method));
    format!("route=\"{route}\",method=\"{method}\",status=\"{}\"", requests.status)
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_prometheus_reads() {
        let requests = Requests {
            route: "/a\"b".to_owned(),
            method: "GET".to_owned(),
            status: 200,
            count: 3,
            duration_ms: 1500,
            buckets: vec![0, 0, 0, 0, 0, 1, 2, 3, 3, 3, 3],
        };
        let ingested = Ingested { events: 7, clamped: 1 };
        let text = text(&[requests], &Recent { in_flight: 0.25, error_ratio: 0.0 }, &ingested, 2);
        for line in [
            "# TYPE http_request_duration_seconds histogram",
            "http_requests_total{route=\"/a\\\"b\",method=\"GET\",status=\"200\"} 3",
            "http_request_duration_seconds_bucket{route=\"/a\\\"b\",method=\"GET\",status=\"200\",le=\"0.25\"} 1",
            "http_request_duration_seconds_bucket{route=\"/a\\\"b\",method=\"GET\",status=\"200\",le=\"+Inf\"} 3",
            "http_request_duration_seconds_sum{route=\"/a\\\"b\",method=\"GET\",status=\"200\"} 1.5",
            "http_requests_in_flight 0.25",
            "events_ingested_total 7",
            "events_clamped_total 1",
            "events_dead_letter_total 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in:\n{text}");
        }
    }
}
