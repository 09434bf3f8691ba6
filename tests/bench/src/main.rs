//! `make bench`: what the functions cost, next to what they cannot do without, measured in one run.
//!
//! Nothing here passes or fails: the figures depend on the machine, the ratios less so.

mod analytics;
mod chat;
mod figures;
mod functions;
mod rebuild;
mod routes;

use std::path::Path;
use std::process::ExitCode;

use sandbox::deployed::Deployed;

const USAGE: &str = "usage: bench [--profile stack|test] [--rebuild] [--events N] [analytics | chat | FUNCTION ...]";
/// The full run of analytics is of ten million.
const EVENTS: usize = 1_000_000;

struct Arguments {
    profile: String,
    rebuild: bool,
    events: usize,
    only: Vec<String>,
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<Arguments, String> {
    let mut found = Arguments { profile: "stack".to_owned(), rebuild: false, events: EVENTS, only: Vec::new() };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--profile" => found.profile = given.next().ok_or(USAGE)?,
            "--events" => found.events = given.next().and_then(|events| events.parse().ok()).ok_or(USAGE)?,
            "--rebuild" => found.rebuild = true,
            flag if flag.starts_with('-') => return Err(USAGE.to_owned()),
            function => found.only.push(function.to_owned()),
        }
    }
    Ok(found)
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let deployed = Deployed::read(&arguments.profile, own.parent().map(Path::to_owned).unwrap_or_default())?;
    let is_asked = |what: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == what);
    let functions: Vec<_> =
        arguments.only.iter().filter(|only| !["analytics", "chat"].contains(&only.as_str())).cloned().collect();
    if arguments.only.is_empty() || !functions.is_empty() {
        functions::measure(&deployed, &functions)?;
    }
    if arguments.only.is_empty() {
        routes::measure(&deployed)?;
    }
    if is_asked("chat") {
        chat::measure(&deployed)?;
    }
    if is_asked("analytics") {
        analytics::measure(&deployed, arguments.events)?;
    }
    if arguments.rebuild {
        rebuild::measure()?;
    }
    Ok(())
}
