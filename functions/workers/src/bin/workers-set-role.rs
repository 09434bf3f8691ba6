//! Invoked by an operator: gives a user a role, told by `{"email":"…","role":"user"}` or `"admin"`.

use std::process::ExitCode;

use lib::auth::role::{Role, Roles};
use lib::error::Result;
use lib::worker::serve_task;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Task {
    email: String,
    role: Role,
}

fn main() -> ExitCode {
    serve_task(env!("CARGO_BIN_NAME"), Roles::init, |roles, event, _| Box::pin(handle(roles, event)))
}

async fn handle(roles: &Roles, event: Value) -> Result<Value> {
    let task: Task = serde_json::from_value(event)?;
    Ok(json!({"userId": roles.set(&task.email, task.role).await?}))
}
