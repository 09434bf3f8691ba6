use crate::support::*;

through_both_doors! {
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
