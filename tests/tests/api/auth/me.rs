use crate::support::*;

through_both_doors! {
    async fn takes_any_of_the_three_credentials(api: Api) {
        let person = api.sign_up().await;
        for reply in [
            api.get("/api/auth/me").cookie(&person.session_token).send().await,
            api.get("/api/auth/me").bearer(&person.session_token).send().await,
            api.get("/api/auth/me").bearer(&person.jwt).send().await,
            api.get("/api/auth/me").header("authorization", &format!("bEARER   {}", person.jwt)).send().await,
            api.get("/api/auth/me").header("cookie", &format!("theme=dark; session={}; a=b", person.session_token)).send().await,
        ] {
            let reply = reply.expect_status(200);
            assert_eq!(reply.body["user"]["id"], person.id);
            assert_eq!(reply.header("cache-control"), Some("no-store"));
        }
    }

    async fn a_bad_bearer_beside_a_good_cookie_is_refused(api: Api) {
        let person = api.sign_up().await;
        for bearer in ["st_nonsense", "nonsense"] {
            api.get("/api/auth/me").cookie(&person.session_token).bearer(bearer).send().await.expect_problem(401, "unauthenticated");
        }
        let basic = api.get("/api/auth/me").cookie(&person.session_token).header("authorization", "Basic YTpi");
        basic.send().await.expect_problem(401, "unauthenticated");
    }

    async fn cookies_of_other_applications_are_in_any_encoding(api: Api) {
        let person = api.sign_up().await;
        let session = format!("session={}", person.session_token);
        for name in ["Zoë".as_bytes(), b"Zo\xeb"] {
            for cookie in [[b"name=", name, b"; ", session.as_bytes()].concat(), [session.as_bytes(), b"; ", name, b"=1"].concat()] {
                api.get("/api/auth/me").header_in_any_encoding("cookie", &cookie).send().await.expect_status(200);
            }
        }
    }

    async fn nothing_else_lets_anybody_in(api: Api) {
        let person = api.sign_up().await;
        api.get("/api/auth/me").send().await.expect_problem(401, "unauthenticated");
        let token = &person.session_token;
        let (head, last) = token.split_at(token.len() - 2);
        let changed = format!("{head}{}", if last == "AA" { "BA" } else { "AA" });
        for bearer in ["", "st_", "st_AAAA", "null", "undefined", &token[3..], &changed, &format!("{token}A"), &token.replace("st_", "ST_")] {
            api.get("/api/auth/me").bearer(bearer).send().await.expect_problem(401, "unauthenticated");
        }
        api.get("/api/auth/me").cookie(&person.jwt).send().await.expect_problem(401, "unauthenticated");
        api.get(&format!("/api/auth/me?token={token}")).send().await.expect_problem(401, "unauthenticated");
    }

    async fn is_not_counted_by_the_limits_on_sign_in(api: Api) {
        let person = api.sign_up().await;
        for _ in 0..20 {
            assert_eq!(api.me(&person.jwt).await, 200);
        }
    }
}
