use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::support::*;

async fn refresh(api: &Api, token: &str) -> Reply {
    api.post("/api/auth/refresh").bearer(token).send().await
}

through_both_doors! {
    async fn rotates_a_bearer(api: Api) {
        let person = api.sign_up().await;
        let reply = refresh(&api, &person.session_token).await.expect_status(200);
        assert!(reply.session_cookie().is_none(), "no cookie came, so none is set");
        let keys: Vec<_> = reply.body.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["expiresAt", "sessionToken", "token", "tokenType"]);
        let successor = reply.text_at("/sessionToken");
        assert_ne!(successor, person.session_token);
        assert_eq!(api.me(&successor).await, 200);
        assert_eq!(api.me(&reply.text_at("/token")).await, 200);
        assert_eq!(api.me(&person.jwt).await, 200, "the access token lives as long as its session");
        let old = api.get("/api/auth/me").bearer(&person.session_token).send().await;
        old.expect_problem(401, "unauthenticated");
        assert_eq!(api.me(&successor).await, 200, "an old token anywhere but here is just refused");
    }

    async fn rotates_a_cookie(api: Api) {
        let person = api.sign_up().await;
        let reply = api.post("/api/auth/refresh").cookie(&person.session_token).send().await.expect_status(200);
        assert!(reply.body.get("sessionToken").is_none());
        let (successor, attributes) = reply.session_cookie().unwrap();
        assert!(attributes.contains(&"httponly".to_owned()) && attributes.contains(&"samesite=lax".to_owned()), "{attributes:?}");
        assert_ne!(successor, person.session_token);
        api.get("/api/auth/me").cookie(&successor).send().await.expect_status(200);
        api.get("/api/auth/me").cookie(&person.session_token).send().await.expect_status(401);
    }

    async fn tabs_that_refresh_at_once_get_the_same_successor(api: Api) {
        let person = api.sign_up().await;
        let one = || async { refresh(&api, &person.session_token).await.expect_status(200).text_at("/sessionToken") };
        let (a, b, c, d, e) = tokio::join!(one(), one(), one(), one(), one());
        assert!([&b, &c, &d, &e].iter().all(|token| **token == a), "{a} {b} {c} {d} {e}");
        assert_eq!(api.me(&a).await, 200);
        assert_eq!(one().await, a, "within the grace also after the successor was used");
    }

    async fn a_stolen_token_ends_the_session_but_not_before_its_successor_was_used(api: Api) {
        let (used, unused) = (api.sign_up().await, api.sign_up().await);
        let unused_successor = refresh(&api, &unused.session_token).await.expect_status(200).text_at("/sessionToken");
        let successor = refresh(&api, &used.session_token).await.expect_status(200).text_at("/sessionToken");
        let rotated = Instant::now();
        assert_eq!(api.me(&successor).await, 200);
        let code = eventually("the end of the grace", || async {
            let reply = refresh(&api, &used.session_token).await;
            if reply.status == 200 {
                assert_eq!(reply.text_at("/sessionToken"), successor);
                return None;
            }
            Some(reply.expect_status(401).text_at("/code"))
        })
        .await;
        assert!(rotated.elapsed().as_secs() >= 9, "the grace lasted {:?}", rotated.elapsed());
        assert_eq!(code, "session_expired");
        assert_eq!(api.me(&successor).await, 401, "whoever used it may be the thief");
        refresh(&api, &successor).await.expect_status(401);

        // Its grace began earlier, so it is over too, but nobody has used the successor.
        let again = refresh(&api, &unused.session_token).await.expect_status(200);
        assert_eq!(again.text_at("/sessionToken"), unused_successor);
        assert_eq!(api.me(&unused_successor).await, 200);
    }

    async fn an_access_token_uses_the_successor_that_it_came_with(api: Api) {
        let (used, unused) = (api.sign_up().await, api.sign_up().await);
        // Within one second an access token from before the refresh looks like one from after it.
        let seconds = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let signed_up = seconds();
        eventually("the next second", || async { (seconds() > signed_up).then_some(()) }).await;
        let unused_successor = refresh(&api, &unused.session_token).await.expect_status(200).text_at("/sessionToken");
        let fresh = refresh(&api, &used.session_token).await.expect_status(200).text_at("/token");
        assert_eq!((api.me(&fresh).await, api.me(&unused.jwt).await), (200, 200));
        let code = eventually("the end of the grace", || async {
            let reply = refresh(&api, &used.session_token).await;
            (reply.status != 200).then(|| reply.expect_status(401).text_at("/code"))
        })
        .await;
        assert_eq!(code, "session_expired");
        assert_eq!(api.me(&fresh).await, 401);

        let again = refresh(&api, &unused.session_token).await.expect_status(200);
        assert_eq!(again.text_at("/sessionToken"), unused_successor, "an older access token tells nothing of the successor");
    }

    async fn of_three_tabs_the_slowest_gets_a_token_that_is_good(api: Api) {
        let person = api.sign_up().await;
        let second = refresh(&api, &person.session_token).await.expect_status(200).text_at("/sessionToken");
        let third = refresh(&api, &second).await.expect_status(200).text_at("/sessionToken");
        // A browser keeps what is set last.
        let slowest = refresh(&api, &person.session_token).await.expect_status(200).text_at("/sessionToken");
        assert_eq!(api.me(&slowest).await, 200);
        assert_eq!(slowest, third);
    }

    async fn the_cookie_decides_beside_whatever_access_token(api: Api) {
        let person = api.sign_up().await;
        let (_, rest) = person.jwt.split_once('.').unwrap();
        let of_a_lost_key = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","typ":"JWT","kid":"lost"}"#));
        for token in [&person.jwt, &of_a_lost_key, "null"] {
            let request = || api.post("/api/auth/refresh").cookie(&person.session_token).bearer(token);
            let reply = request().header("origin", ORIGIN).send().await.expect_status(200);
            assert!(reply.session_cookie().is_some() && reply.body.get("sessionToken").is_none());
            request().header("origin", "https://evil.example").send().await.expect_problem(403, "origin_not_allowed");
            refresh(&api, token).await.expect_problem(401, "unauthenticated");
        }
        let malformed = api.post("/api/auth/refresh").cookie(&person.session_token).bearer("st_AAAA").send().await;
        malformed.expect_problem(401, "unauthenticated");
    }

    async fn takes_no_access_token_and_no_forgery(api: Api) {
        let person = api.sign_up().await;
        api.post("/api/auth/refresh").send().await.expect_problem(401, "unauthenticated");
        for token in [&person.jwt, "st_", "st_AAAA", ""] {
            refresh(&api, token).await.expect_problem(401, "unauthenticated");
        }
        let token = &person.session_token;
        let forged = format!("{}{}", &token[..token.len() - 20], "A".repeat(20));
        refresh(&api, &forged).await.expect_problem(401, "unauthenticated");
        assert_eq!(api.me(token).await, 200, "a forgery must not end the session");
        refresh(&api, token).await.expect_status(200);
    }
}
