//! `POST /api/auth/signup`: makes an account and, unless the address must be verified first, signs its user in.

use std::process::ExitCode;

use lib::auth::account::{Accounts, NewAccount, SignUp};
use lib::auth::email::Email;
use lib::auth::password::NewPassword;
use lib::error::Result;
use lib::http::credentials::{self, Transport};
use lib::http::validate::{Field, Invalid, Raw, bounded_text};
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct SignupRequest { email: Email, password: NewPassword, name: Option<Name>, transport: Transport }
}

struct Name(String);

impl Field for Name {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let name = bounded_text(raw, 1, 100)?;
        if name.chars().any(char::is_control) {
            return Err(Invalid::new("malformed", "Must not contain control characters."));
        }
        Ok(Self(name))
    }
}

#[derive(Serialize)]
struct PendingResponse {
    status: &'static str,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::CREDENTIALS, Accounts::init, |accounts, request| {
        Box::pin(handle(accounts, request))
    })
}

async fn handle(accounts: &Accounts, request: Request) -> Result<Response> {
    let SignupRequest { email, password, name, transport } = request.json()?;
    let new = NewAccount { email, password, name: name.map(|name| name.0) };
    match accounts.sign_up(new, &request.visit()).await? {
        SignUp::SignedIn(signed_in) => credentials::signed_in(http::StatusCode::CREATED, &signed_in, transport),
        SignUp::VerificationRequired => Response::accepted(&PendingResponse { status: "verification_required" }),
    }
}
