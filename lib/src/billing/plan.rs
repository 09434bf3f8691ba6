//! The plans, in the one place that knows their prices and quotas.

use serde::Serialize;

use crate::error::{Error, Result};

/// What a user is entitled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Plan {
    /// Without payment.
    Free,
    /// For one person at work.
    Pro,
    /// For heavy use.
    Enterprise,
}

/// A plan as the API shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// The plan's id.
    pub id: &'static str,
    /// The plan's name.
    pub name: &'static str,
    /// Price of an interval, in minor units of the currency.
    pub amount: i64,
    /// ISO 4217.
    pub currency: &'static str,
    /// How often the price is due.
    pub interval: &'static str,
    /// Tokens of a calendar month.
    pub tokens_per_month: i64,
}

impl Plan {
    /// All plans, cheapest first.
    pub const ALL: [Self; 3] = [Self::Free, Self::Pro, Self::Enterprise];

    /// The plan's id.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.terms().id
    }

    /// Price and quota.
    #[must_use]
    pub const fn terms(self) -> Terms {
        let (id, name, amount, tokens_per_month) = match self {
            Self::Free => ("free", "Free", 0, 50_000),
            Self::Pro => ("pro", "Pro", 2_999, 2_000_000),
            Self::Enterprise => ("enterprise", "Enterprise", 9_999, 20_000_000),
        };
        Terms { id, name, amount, currency: "USD", interval: "month", tokens_per_month }
    }

    /// The plan of that id.
    #[must_use]
    pub fn parse(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plan| plan.as_str() == id)
    }

    /// Reads a stored id.
    ///
    /// # Errors
    /// When the database holds an id that is no plan.
    #[track_caller]
    pub fn stored(id: &str) -> Result<Self> {
        Self::parse(id).ok_or_else(|| Error::internal(format!("the stored plan {id} is unknown")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_back() {
        assert!(Plan::ALL.iter().all(|plan| Plan::parse(plan.as_str()) == Some(*plan)));
        assert_eq!(Plan::parse("Free"), None);
    }

    #[test]
    fn events_know_the_same_plans() {
        assert_eq!(Plan::ALL.map(Plan::as_str), crate::analytics::event::PLANS);
    }
}
