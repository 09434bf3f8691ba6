//! Who proves nothing has a new sandbox open no connection to Postgres.

use std::fs;
use std::path::Path;
use std::str::FromStr;

use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use sqlx::postgres::PgConnectOptions;

use crate::support::*;

/// What the sandbox holds open to Postgres.
fn connections(sandbox: &Sandbox) -> usize {
    let port = PgConnectOptions::from_str(&variable("DATABASE_URL")).unwrap().get_port();
    let remote = format!(":{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let to_postgres: Vec<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[2].ends_with(&remote))
        .map(|fields| format!("socket:[{}]", fields[9]))
        .collect();
    let open = fs::read_dir(format!("/proc/{}/fd", sandbox.id())).unwrap();
    open.filter_map(|file| fs::read_link(file.unwrap().path()).ok())
        .filter(|file| to_postgres.iter().any(|socket| Path::new(socket) == file))
        .count()
}

/// Invokes a new sandbox of a function for strangers, then for a person, who is answered with this status.
async fn strangers_and(name: &str, person: &Person, status: u16) {
    let mut sandbox = Sandbox::start(&deployed().binary(name), &deployed().environment(name)).unwrap();
    let forged = format!("{}x", person.jwt);
    let unknown = format!("st_{}", "A".repeat(person.session_token.len() - 3));
    for token in [None, Some(forged.as_str()), Some(unknown.as_str())] {
        let event = Deployed::event(name, &random_address(), None, token).unwrap();
        let reply = sandbox.invoke(&event).unwrap().payload;
        assert_eq!((&reply["statusCode"], connections(&sandbox)), (&401.into(), 0), "{name}, {token:?}: {reply}");
    }
    let event = Deployed::event(name, &random_address(), None, Some(&person.jwt)).unwrap();
    let reply = sandbox.invoke(&event).unwrap().payload;
    assert_eq!((&reply["statusCode"], connections(&sandbox)), (&status.into(), 1), "{name}: {reply}");
}

#[tokio::test]
async fn a_stranger_has_a_new_sandbox_open_none() {
    let person = Api::of_router().sign_up().await;
    strangers_and("auth-me", &person, 200).await;
    strangers_and("auth-signout", &person, 204).await;
}
