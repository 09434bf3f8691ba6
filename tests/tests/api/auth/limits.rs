use std::time::{Duration, Instant};

use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use serde_json::{Value, json};

use super::stages::Function;
use crate::support::*;

const STRICT: [(&str, &str); 1] = [("AUTH_LIMITS", "strict")];

/// Statuses of sign-ins from the function's present address.
fn sign_ins(function: &mut Function, attempts: usize, email: impl Fn() -> String, password: &str) -> Vec<u64> {
    (0..attempts).map(|_| function.post(&json!({"email": email(), "password": password})).0).collect()
}

/// The status of one more attempt, and whether it is to be made again when the window has ended.
fn put_off(function: &mut Function, window: u64, attempt: &Value) -> (u64, bool) {
    let before = left_of_window(window);
    let (status, problem, _) = function.post(attempt);
    let wait = problem["retryAfterSeconds"].as_u64().unwrap_or_default();
    (status, (left_of_window(window)..=before).contains(&wait))
}

#[tokio::test]
async fn a_device_with_an_old_password_does_not_refuse_others_of_its_address() {
    let api = Api::of_router();
    let (stale, other) = (api.sign_up().await, api.sign_up().await);
    let mut sign_in = Function::with("auth-signin", &STRICT);
    let (wrong, right) = within_a_window(900, async || {
        sign_in.address = random_address();
        let wrong = sign_ins(&mut sign_in, 12, || stale.email.clone(), "wrong password");
        (wrong, sign_ins(&mut sign_in, 1, || other.email.clone(), PASSWORD))
    })
    .await;
    assert_eq!((wrong, right), ([vec![401; 5], vec![429; 7]].concat(), vec![200]));
}

#[tokio::test]
async fn ten_wrong_passwords_of_one_address_are_enough_whosever_they_are() {
    let mut sign_in = Function::with("auth-signin", &STRICT);
    let attempt = json!({"email": new_email(), "password": "wrong password"});
    let (statuses, one_more) = within_a_window(900, async || {
        sign_in.address = random_address();
        let statuses = sign_ins(&mut sign_in, 10, new_email, "wrong password");
        (statuses, put_off(&mut sign_in, 900, &attempt))
    })
    .await;
    assert_eq!((statuses, one_more), (vec![401; 10], (429, true)));
}

#[tokio::test]
async fn five_sign_ups_of_one_address_are_enough_for_an_hour() {
    let mut sign_up = Function::with("auth-signup", &STRICT);
    let account = || json!({"email": new_email(), "password": PASSWORD});
    let (statuses, one_more) = within_a_window(3600, async || {
        sign_up.address = random_address();
        let statuses: Vec<_> = (0..5).map(|_| sign_up.post(&account()).0).collect();
        (statuses, put_off(&mut sign_up, 3600, &account()))
    })
    .await;
    assert_eq!((statuses, one_more), (vec![201; 5], (429, true)));
    sign_up.address = random_address();
    assert_eq!(sign_up.post(&account()).0, 201);
}

#[tokio::test]
async fn a_limit_of_zero_requests_is_none() {
    let mut environment = deployed().environment("billing-list-plans");
    environment.insert("RATE_LIMIT_PER_MINUTE".to_owned(), "0".to_owned());
    let mut plans = Sandbox::start(&deployed().binary("billing-list-plans"), &environment).unwrap();
    let event = Deployed::event("billing-list-plans", &random_address(), None, None).unwrap();
    let reply = plans.invoke(&event).unwrap().payload;
    assert_eq!(reply["statusCode"], 200, "{reply}");
    assert!(!reply.to_string().to_lowercase().contains("\"ratelimit"), "{reply}");
}

/// Statuses of sign-ins with a wrong password, one after the other.
async fn wrong_passwords(api: &Api, email: &str, attempts: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..attempts {
        statuses.push(api.sign_in(email, "wrong password").await.status);
    }
    statuses
}

// At the local stage the windows of sign-in have a minute.
through_both_doors! {
    async fn wrong_passwords_at_once_are_no_more_than_one_after_the_other(api: Api) {
        let mut statuses = within_a_window(60, async || {
            let person = api.sign_up().await;
            let tries = (0..20).map(|_| api.sign_in(&person.email, "wrong password"));
            futures_util::future::join_all(tries).await.iter().map(|reply| reply.status).collect::<Vec<_>>()
        })
        .await;
        statuses.sort_unstable();
        assert_eq!(statuses, [vec![401; 5], vec![429; 15]].concat());
    }

    async fn five_wrong_passwords_from_one_address_are_enough(api: Api) {
        let (person, statuses) = within_a_window(60, async || {
            let person = api.sign_up().await;
            let statuses = wrong_passwords(&api, &person.email, 6).await;
            (person, statuses)
        })
        .await;
        assert_eq!(statuses, [401, 401, 401, 401, 401, 429]);
        api.sign_in(&new_email(), "wrong password").await.expect_problem(401, "invalid_credentials");
        api.elsewhere().sign_in(&person.email, PASSWORD).await.expect_status(200);
        assert_eq!(api.me(&person.jwt).await, 200, "a limit on sign-in is none on a session");
    }

    async fn an_unknown_address_is_limited_alike(api: Api) {
        let statuses = within_a_window(60, async || wrong_passwords(&api, &new_email(), 6).await).await;
        assert_eq!(statuses, [401, 401, 401, 401, 401, 429]);
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

    async fn wrong_passwords_from_many_addresses_are_answered_later_and_do_not_lock_the_owner_out(api: Api) {
        let person = api.sign_up().await;
        let last_took = within_a_window(60, async || {
            let mut last_took = Duration::ZERO;
            for _ in 0..6 {
                let attacker = || {
                    let (door, email) = (api.elsewhere(), person.email.clone());
                    async move { door.sign_in(&email, "wrong password").await.status }
                };
                let began = Instant::now();
                let statuses = tokio::join!(attacker(), attacker(), attacker(), attacker());
                assert_eq!(statuses, (401, 401, 401, 401));
                last_took = began.elapsed();
            }
            last_took
        })
        .await;
        // Ten are free, and each further one costs a tenth of a second more.
        assert!(last_took >= Duration::from_millis(1_400), "{last_took:?}");
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
        let kept = "the stack under test must keep the default of RATE_LIMIT_PER_MINUTE";
        assert_eq!(policy, "\"default\";q=100;w=60", "{kept}");
        assert!(first.header("ratelimit").unwrap().starts_with("\"default\";r="), "{:?}", first.headers);

        // A user is counted on all devices and credentials together.
        let elsewhere = api.elsewhere();
        let (statuses, limited) = within_a_window(60, async || {
            let person = api.sign_up().await;
            let me = async |number: usize| {
                let call = [&api, &elsewhere][number % 2].get("/api/auth/me");
                let call = match number % 3 {
                    0 => call.bearer(&person.jwt),
                    1 => call.bearer(&person.session_token),
                    _ => call.cookie(&person.session_token),
                };
                call.send().await
            };
            let mut statuses = Vec::new();
            for number in 0..102 {
                statuses.push(me(number).await.status);
            }
            (statuses, me(102).await)
        })
        .await;
        let admitted = statuses.iter().take_while(|status| **status == 200).count();
        // A call that the table answers late is repeated, and counts twice.
        assert!((98..=100).contains(&admitted), "{statuses:?}");
        assert!(statuses[admitted..].iter().all(|status| *status == 429), "{statuses:?}");
        let limited = limited.expect_problem(429, "rate_limited");
        assert!(limited.header("ratelimit").unwrap().starts_with("\"default\";r=0;t="), "{:?}", limited.headers);
        assert!((1..=60).contains(&limited.body["retryAfterSeconds"].as_u64().unwrap()));

        api.get("/api/billing/plans").send().await.expect_status(200);
        let other = api.elsewhere().sign_up().await;
        assert_eq!(api.me(&other.jwt).await, 200, "another user of the same address is another client");
        api.get("/").send().await.expect_status(200);
    }

    async fn an_address_has_as_many_without_a_good_credential(api: Api) {
        let statuses = within_a_window(60, async || {
            let stranger = api.elsewhere();
            let mut statuses = Vec::new();
            for _ in 0..99 {
                statuses.push(stranger.get("/api/billing/plans").send().await.status);
            }
            for _ in 0..2 {
                statuses.push(stranger.me("nonsense").await);
            }
            statuses.push(stranger.get("/api/billing/plans").send().await.status);
            statuses
        })
        .await;
        assert_eq!(statuses, [vec![200; 99], vec![401, 429, 429]].concat());
        api.elsewhere().get("/api/billing/plans").send().await.expect_status(200);
    }
}
