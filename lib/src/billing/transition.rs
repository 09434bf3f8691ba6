//! What changes when a subscription is read anew: decided from what was told before and what is so now, and from
//! nothing else. Reading it twice, or after webhooks in any order, tells the same.

use crate::billing::plan::Plan;
use crate::billing::stripe_object::StripeSubscription;

/// What was last published about a subscription.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// The plan and status last told of.
    pub plan: Option<Plan>,
    /// Stripe's status.
    pub status: String,
    /// The cheaper plan to come.
    pub pending: Option<Plan>,
    /// Whether it ends with its period.
    pub ends: bool,
    /// Whether it was told to have begun and not to have ended.
    pub running: bool,
    /// What it adds to the monthly revenue.
    pub mrr: i64,
}

/// How the monthly revenue moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Movement {
    /// By a first subscription.
    New,
    /// By a subscription after an earlier one.
    Reactivation,
    /// Up.
    Expansion,
    /// Down.
    Contraction,
    /// Not at all.
    None,
    /// By the end of a subscription.
    Churn,
}

impl Movement {
    /// The name in events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Reactivation => "reactivation",
            Self::Expansion => "expansion",
            Self::Contraction => "contraction",
            Self::None => "none",
            Self::Churn => "churn",
        }
    }
}

/// What is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It began.
    Began(Movement, i64),
    /// It is another plan's, or in another state.
    Moved {
        /// The plan told of before.
        from: Plan,
        /// How the revenue moved.
        movement: Movement,
        /// By how much.
        delta: i64,
    },
    /// It ended.
    Ended(i64),
}

/// The state to store as last published, and the change to publish, if there is one.
#[must_use]
pub fn change(
    published: &Published,
    now: &StripeSubscription,
    plan: Plan,
    returning: bool,
) -> (Published, Option<Change>) {
    let pending = now.plans().and_then(|(_, pending)| pending);
    // Until the cheaper plan comes, what is paid stays as it was, whatever plans cost by now.
    let keeps_price = pending.is_some() && now.mrr() > 0 && published.mrr > 0 && published.plan == Some(plan);
    let next = Published {
        plan: Some(plan),
        status: now.status.clone(),
        pending,
        ends: now.cancel_at_period_end,
        running: now.runs(),
        mrr: if keeps_price { published.mrr } else { now.mrr() },
    };
    let delta = next.mrr - published.mrr;
    let change = match (published.running, next.running) {
        (false, false) => None,
        (false, true) => Some(Change::Began(if returning { Movement::Reactivation } else { Movement::New }, next.mrr)),
        (true, false) => Some(Change::Ended(-published.mrr)),
        (true, true) if next == *published => None,
        (true, true) => {
            let movement = match delta {
                0 => Movement::None,
                1.. => Movement::Expansion,
                _ => Movement::Contraction,
            };
            Some(Change::Moved { from: published.plan.unwrap_or(plan), movement, delta })
        }
    };
    (next, change)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The life of a subscription as Stripe would show it, one state after another.
    fn life() -> Vec<StripeSubscription> {
        let state = |status: &str, plan: Plan, period: i64, ends: bool, paid: Option<i64>| {
            let metadata =
                paid.map_or(json!({}), |until| json!({"paid_plan": "enterprise", "paid_until": until.to_string()}));
            StripeSubscription::read(&json!({
                "id": "sub_1", "customer": "cus_1", "status": status, "created": 0, "metadata": metadata,
                "cancel_at_period_end": ends,
                "items": {"data": [{
                    "id": "si_1", "current_period_start": period, "current_period_end": period + 100,
                    "price": {"metadata": {"plan": plan.as_str()}, "unit_amount": plan.terms().amount, "currency": "usd"},
                }]},
            }))
            .unwrap()
        };
        use Plan::{Enterprise, Pro};
        vec![
            state("incomplete", Pro, 0, false, None),
            state("trialing", Pro, 0, false, None),
            state("active", Pro, 100, false, None),
            state("active", Enterprise, 100, false, None),
            state("active", Pro, 100, false, Some(200)),
            state("active", Pro, 200, false, Some(200)),
            state("past_due", Pro, 300, false, None),
            state("active", Pro, 300, false, None),
            state("active", Pro, 300, true, None),
            state("active", Pro, 300, false, None),
            state("active", Pro, 300, true, None),
            state("canceled", Pro, 300, true, None),
        ]
    }

    #[test]
    fn a_cheaper_plan_to_come_moves_no_revenue() {
        let waits = &life()[4];
        let paid = |mrr| Published {
            plan: Some(Plan::Enterprise),
            status: "active".to_owned(),
            running: true,
            mrr,
            ..Published::default()
        };
        let (next, change) = change(&paid(8_333), waits, Plan::Enterprise, false);
        assert_eq!((next.mrr, next.pending), (8_333, Some(Plan::Pro)));
        assert!(matches!(change, Some(Change::Moved { movement: Movement::None, delta: 0, .. })));
        // Of one whose earlier price is not known.
        assert_eq!(super::change(&paid(0), waits, Plan::Enterprise, false).0.mrr, Plan::Enterprise.terms().amount);
    }

    /// A generator of which the seed is known, so that what fails can be repeated.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(self.0 >> 33).unwrap() % bound
        }
    }

    /// Whatever the order and number of the deliveries, each reads the state of its moment.
    #[test]
    fn a_thousand_orders_end_in_the_same_state() {
        let life = life();
        for seed in 0..1000 {
            let mut random = Random(seed);
            let (mut published, mut began, mut ended, mut mrr, mut at) = (Published::default(), 0, 0, 0, 0);
            // Deliveries come early, late and twice; Stripe's own state only ever goes on.
            for _ in 0..life.len() + random.below(30) {
                at = (at + random.below(3)).min(life.len() - 1);
                for _ in 0..=random.below(2) {
                    let now = &life[at];
                    let (next, change) = change(&published, now, now.plans().unwrap().0, began > 0);
                    published = next;
                    match change {
                        Some(Change::Began(movement, delta)) => {
                            assert_eq!(movement, if began > 0 { Movement::Reactivation } else { Movement::New });
                            began += 1;
                            mrr += delta;
                        }
                        Some(Change::Moved { movement, delta, .. }) => {
                            assert_eq!(movement == Movement::Expansion, delta > 0, "seed {seed}");
                            assert_eq!(movement == Movement::Contraction, delta < 0, "seed {seed}");
                            mrr += delta;
                        }
                        Some(Change::Ended(delta)) => {
                            ended += 1;
                            mrr += delta;
                        }
                        None => {}
                    }
                    assert_eq!((mrr, began - ended), (published.mrr, i32::from(published.running)), "seed {seed}");
                }
            }
            let last = life.last().unwrap();
            let (end, _) = change(&published, last, Plan::Pro, began > 0);
            assert!(began <= 1 && ended <= 1, "seed {seed}");
            assert_eq!((end.mrr, end.running, end.status.as_str()), (0, false, "canceled"), "seed {seed}");
        }
    }

    #[test]
    fn a_life_in_order_tells_each_step_once() {
        let mut published = Published::default();
        let mut steps = Vec::new();
        for now in life() {
            let (next, change) = change(&published, &now, now.plans().unwrap().0, false);
            published = next;
            steps.extend(change);
        }
        let moved = |from, movement, delta| Change::Moved { from, movement, delta };
        use Plan::{Enterprise, Pro};
        assert_eq!(
            steps,
            [
                Change::Began(Movement::New, 0),
                moved(Pro, Movement::Expansion, 2_999),
                moved(Pro, Movement::Expansion, 7_000),
                moved(Enterprise, Movement::None, 0),
                moved(Enterprise, Movement::Contraction, -7_000),
                moved(Pro, Movement::None, 0),
                moved(Pro, Movement::None, 0),
                moved(Pro, Movement::None, 0),
                moved(Pro, Movement::None, 0),
                moved(Pro, Movement::None, 0),
                Change::Ended(-2_999),
            ]
        );
    }
}
