//! Two promises about time: `GET /api/auth/me` costs little more than its round trips, and sign-in takes as
//! long for an unknown address as for a known one.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::figures::{median, millis, print, quantile, ratio};

const PASSWORD: &str = "correct horse battery";
const WARM_UP: usize = 50;
const SAMPLES: usize = 400;
/// Wrong passwords that one account takes before its limit.
const FAILURES_PER_ACCOUNT: usize = 4;
const ACCOUNTS: usize = 30;

/// Prints both.
pub(crate) fn measure(deployed: &Deployed) -> Result<(), String> {
    let mut sign_up = deployed.start("auth-signup")?;
    me(deployed, &mut sign_up)?;
    sign_in(deployed, &mut sign_up)
}

struct Account {
    email: String,
    user_id: String,
    session_id: String,
    session_token: String,
}

impl Account {
    fn new(sign_up: &mut Sandbox) -> Result<Self, String> {
        let email = format!("bench-{}@example.com", Uuid::now_v7().simple());
        let body = json!({ "email": email, "password": PASSWORD, "transport": "bearer" });
        let reply = sign_up.invoke(&Deployed::event("auth-signup", &random_address(), Some(&body), None)?)?.payload;
        let body: Value = reply["body"].as_str().and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default();
        let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| format!("sign-up answered {reply}"));
        let claims = text(&body["token"])?.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let claims: Value = claims.and_then(|claims| serde_json::from_slice(&claims).ok()).unwrap_or_default();
        Ok(Self {
            email,
            user_id: text(&body["user"]["id"])?,
            session_id: text(&claims["sid"])?,
            session_token: text(&body["sessionToken"])?,
        })
    }
}

fn me(deployed: &Deployed, sign_up: &mut Sandbox) -> Result<(), String> {
    let account = Account::new(sign_up)?;
    let mut function = deployed.start("auth-me")?;
    let mut bare = deployed.start_own("bench-round-trips", "auth-me")?;
    let event = Deployed::event("auth-me", &random_address(), None, Some(&account.session_token))?;
    let ids = json!({ "userId": account.user_id, "sessionId": account.session_id });

    let (mut of_function, mut of_bare) = (Vec::new(), Vec::new());
    for turn in 0..WARM_UP + SAMPLES {
        let reply = function.invoke(&event)?;
        if reply.payload["statusCode"] != 200 {
            return Err(format!("auth-me answered {}", reply.payload));
        }
        let micros = bare.invoke(&ids)?.payload["micros"].as_u64().ok_or("the round trips were not timed")?;
        if turn >= WARM_UP {
            of_function.push(reply.took);
            of_bare.push(Duration::from_micros(micros));
        }
    }
    println!("\nWarm GET /api/auth/me, {SAMPLES} times, next to its bare round trips (target: 1.5x)\n");
    comparison("GET /api/auth/me", &of_function, "bare GetItem + UpdateItem, SELECT", &of_bare);
    Ok(())
}

fn sign_in(deployed: &Deployed, sign_up: &mut Sandbox) -> Result<(), String> {
    let mut function = deployed.start("auth-signin")?;
    let (mut of_known, mut of_unknown) = (Vec::new(), Vec::new());
    for _ in 0..ACCOUNTS {
        let known = Account::new(sign_up)?.email;
        let unknown = format!("bench-{}@example.com", Uuid::now_v7().simple());
        for _ in 0..FAILURES_PER_ACCOUNT {
            for (email, samples) in [(&known, &mut of_known), (&unknown, &mut of_unknown)] {
                let body = json!({ "email": email, "password": "not the password" });
                let reply = function.invoke(&Deployed::event("auth-signin", &random_address(), Some(&body), None)?)?;
                if reply.payload["statusCode"] != 401 {
                    return Err(format!("auth-signin answered {}", reply.payload));
                }
                samples.push(reply.took);
            }
        }
    }
    println!("\nPOST /api/auth/signin with a wrong password, {} times each (alike is right)\n", of_known.len());
    comparison("known address", &of_known, "unknown address", &of_unknown);
    Ok(())
}

fn comparison(name: &str, samples: &[Duration], base_name: &str, base: &[Duration]) {
    let row = |name: &str, samples: &[Duration]| {
        let (median, p95) = (median(samples), quantile(samples, 0.95));
        let ratios = (ratio(median, self::median(base)), ratio(p95, quantile(base, 0.95)));
        vec![name.to_owned(), millis(median), format!("{:.2}", ratios.0), millis(p95), format!("{:.2}", ratios.1)]
    };
    let heads = ["", "median ms", "ratio", "p95 ms", "ratio"].map(str::to_owned).to_vec();
    print(&[heads, row(name, samples), row(base_name, base)]);
}
