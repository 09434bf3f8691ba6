//! Connections to Postgres: who proves nothing has a new sandbox open none, and one that takes no writes is not kept.

use std::fs;
use std::path::Path;
use std::str::FromStr;

use lib::error::{Code, Error};
use lib::store::postgres::Database;
use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Executor};

use crate::billing::orders::{drop_database, own_database};
use crate::billing::stores::postgres;
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

/// After a failover, the server of an open connection is a reader, and its name leads to another one.
#[tokio::test]
async fn a_connection_to_a_server_that_takes_no_writes_is_made_anew() {
    let url = own_database().await;
    let is_read_only = async |how: &str| {
        let name = url.rsplit('/').next().unwrap();
        let statement = format!("ALTER DATABASE {name} SET default_transaction_read_only = {how}");
        postgres().await.execute(AssertSqlSafe(statement)).await.unwrap();
    };
    let database = Database::connect_lazy(&url).unwrap();
    let write = async || {
        let written = sqlx::query("CREATE TABLE written ()").execute(database.pool()).await;
        written.map(drop).map_err(|error| Error::from(error).code())
    };
    is_read_only("on").await;
    assert_eq!(write().await, Err(Code::Unavailable));
    is_read_only("off").await;
    assert_eq!(write().await, Ok(()));
    database.pool().close().await;
    drop_database(&url).await;
}
