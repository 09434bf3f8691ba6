use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use serde_json::json;

use crate::support::*;

/// Sign-in under the limits of production, from one address.
struct StrictSignIn {
    function: Sandbox,
    address: String,
}

impl StrictSignIn {
    fn start() -> Self {
        let mut environment = deployed().environment("auth-signin");
        environment.insert("AUTH_LIMITS".to_owned(), "strict".to_owned());
        let function = Sandbox::start(&deployed().binary("auth-signin"), &environment).unwrap();
        Self { function, address: random_address() }
    }

    fn sign_in(&mut self, email: &str, password: &str) -> u64 {
        let body = json!({"email": email, "password": password});
        let event = Deployed::event("auth-signin", &self.address, Some(&body), None).unwrap();
        self.function.invoke(&event).unwrap().payload["statusCode"].as_u64().unwrap()
    }
}

#[tokio::test]
async fn a_device_with_an_old_password_does_not_refuse_others_of_its_address() {
    let api = Api::of_router();
    let (stale, other) = (api.sign_up().await, api.sign_up().await);
    let mut address = StrictSignIn::start();
    let mut refused = 0;
    // The window may end in between, which allows five more.
    for _ in 0..30 {
        refused += usize::from(address.sign_in(&stale.email, "wrong password") == 429);
    }
    assert!(refused >= 20, "{refused}");
    assert_eq!(address.sign_in(&other.email, PASSWORD), 200);
}

#[tokio::test]
async fn ten_wrong_passwords_of_one_address_are_enough_whosever_they_are() {
    let mut address = StrictSignIn::start();
    let mut statuses = Vec::new();
    // Two windows may begin while this runs, hardly three.
    for _ in 0..=20 {
        statuses.push(address.sign_in(&new_email(), "wrong password"));
    }
    assert!(statuses[..10].iter().all(|status| *status == 401), "{statuses:?}");
    assert!(statuses.contains(&429), "{statuses:?}");
}

through_both_doors! {
    async fn wrong_passwords_at_once_are_no_more_than_one_after_the_other(api: Api) {
        let person = api.sign_up().await;
        let tries = (0..20).map(|_| api.sign_in(&person.email, "wrong password"));
        let replies = futures_util::future::join_all(tries).await;
        let admitted = replies.iter().filter(|reply| reply.status == 401).count();
        // The window may end in between, which allows five more.
        assert!((5..=10).contains(&admitted), "{admitted}");
        assert!(replies.iter().all(|reply| matches!(reply.status, 401 | 429)));
    }

    async fn five_wrong_passwords_from_one_address_are_enough(api: Api) {
        let person = api.sign_up().await;
        for _ in 0..5 {
            api.sign_in(&person.email, "wrong password").await.expect_problem(401, "invalid_credentials");
        }
        // The window may end in between, which allows five more.
        let mut limited = None;
        for _ in 0..6 {
            let reply = api.sign_in(&person.email, "wrong password").await;
            if reply.status == 429 {
                limited = Some(reply.expect_problem(429, "too_many_attempts"));
                break;
            }
        }
        let limited = limited.expect("eleven wrong passwords within two windows were not limited");
        assert!(limited.body["retryAfterSeconds"].as_u64().unwrap() > 0);
        api.sign_in(&new_email(), "wrong password").await.expect_problem(401, "invalid_credentials");
        api.elsewhere().sign_in(&person.email, PASSWORD).await.expect_status(200);
        assert_eq!(api.me(&person.jwt).await, 200, "a limit on sign-in is none on a session");
    }

    async fn an_unknown_address_is_limited_alike(api: Api) {
        let unknown = new_email();
        for _ in 0..5 {
            api.sign_in(&unknown, "wrong password").await.expect_problem(401, "invalid_credentials");
        }
        let mut limited = false;
        for _ in 0..6 {
            limited = api.sign_in(&unknown, "wrong password").await.status == 429;
            if limited {
                break;
            }
        }
        assert!(limited);
    }

    async fn successes_are_not_counted(api: Api) {
        let person = api.sign_up().await;
        for _ in 0..12 {
            api.sign_in(&person.email, PASSWORD).await.expect_status(200);
        }
    }

    async fn right_passwords_at_the_same_moment_are_no_failures(api: Api) {
        let person = api.sign_up().await;
        let sign_ins = (0..8).map(|_| api.sign_in(&person.email, PASSWORD));
        let statuses: Vec<_> = futures_util::future::join_all(sign_ins).await.iter().map(|reply| reply.status).collect();
        assert_eq!(statuses, [200; 8]);
    }

    async fn wrong_passwords_from_many_addresses_do_not_lock_the_owner_out(api: Api) {
        let person = api.sign_up().await;
        for _ in 0..10 {
            let attacker = || {
                let (door, email) = (api.elsewhere(), person.email.clone());
                async move { door.sign_in(&email, "wrong password").await.status }
            };
            let statuses = tokio::join!(attacker(), attacker(), attacker(), attacker());
            assert_eq!(statuses, (401, 401, 401, 401));
        }
        api.sign_in(&person.email, PASSWORD).await.expect_status(200);
    }

    async fn whoever_goes_on_sending_an_ended_sessions_token_uses_up_nothing_of_its_owner(api: Api) {
        let person = api.sign_up().await;
        let left = Person::of(&person.email, &api.sign_in(&person.email, PASSWORD).await);
        api.post("/api/auth/signout").bearer(&left.jwt).send().await.expect_status(204);
        let elsewhere = api.elsewhere();
        // More than a minute's requests, which an address has as well.
        for _ in 0..120 {
            let status = elsewhere.me(&left.jwt).await;
            assert!(matches!(status, 401 | 429), "{status}");
        }
        assert_eq!(api.me(&person.jwt).await, 200);
    }

    async fn a_client_has_its_requests_a_minute_and_no_more(api: Api) {
        let person = api.sign_up().await;
        let first = api.get("/api/auth/me").bearer(&person.jwt).send().await.expect_status(200);
        let policy = first.header("ratelimit-policy").unwrap();
        let quota: u32 = policy.strip_prefix("\"default\";q=").and_then(|rest| rest.strip_suffix(";w=60")).unwrap().parse().unwrap();
        assert_eq!(quota, 100, "the stack under test must keep the default of RATE_LIMIT_PER_MINUTE");
        assert!(first.header("ratelimit").unwrap().starts_with("\"default\";r="), "{:?}", first.headers);

        // Two minutes may begin while this runs, hardly three.
        let mut limited = None;
        for _ in 0..=2 * quota {
            let reply = api.get("/api/auth/me").bearer(&person.session_token).send().await;
            if reply.status == 429 {
                limited = Some(reply.expect_problem(429, "rate_limited"));
                break;
            }
        }
        let limited = limited.expect("a user was never limited");
        assert!(limited.header("ratelimit").unwrap().starts_with("\"default\";r=0;t="), "{:?}", limited.headers);
        assert!((1..=60).contains(&limited.body["retryAfterSeconds"].as_u64().unwrap()));

        // Where the minute has not ended: the user is counted on all devices and credentials together.
        let elsewhere = api.elsewhere().get("/api/auth/me").cookie(&person.session_token).send().await;
        assert!(matches!(elsewhere.status, 200 | 429));
        api.get("/api/billing/plans").send().await.expect_status(200);
        let other = api.elsewhere().sign_up().await;
        assert_eq!(api.me(&other.jwt).await, 200, "another user of the same address is another client");
        api.get("/").send().await.expect_status(200);
    }
}
