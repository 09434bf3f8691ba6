//! `make seed`: a history into the analytics of a running stack. A short one goes through the ingest function as
//! SQS would hand it over; a long one is written by the function's own writer, in larger blocks and without SQS.
//! Either way every event is read as strictly as any other, counted once, and seen by every view.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use lib::analytics::event::Event;
use lib::analytics::writer::Writer;
use lib::config::Secret;
use lib::store::clickhouse::ClickHouse;
use lib::store::postgres::Database;
use sandbox::deployed::Deployed;
use sandbox::history::{History, Told, delivery};

const USAGE: &str = "usage: bench-seed PROFILE EVENTS";
/// The most events that go through the function.
const SHORT: usize = 200_000;
/// Messages of one invocation: a payload stays below Lambda's 6 MB.
const DELIVERY: usize = 4000;
const BLOCK: usize = 50_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("\n{message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let (Some(profile), Some(Ok(count))) = (arguments.next(), arguments.next().map(|count| count.parse::<usize>()))
    else {
        return Err(USAGE.to_owned());
    };
    if count == 0 {
        return Err("EVENTS must be a positive number.".to_owned());
    }
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let deployed = Deployed::read(&profile, own.parent().map(Path::to_owned).unwrap_or_default())?;
    let started = Instant::now();
    let new = if count <= SHORT { through_the_function(&deployed, count)? } else { in_bulk(&deployed, count)? };
    let seconds = started.elapsed().as_secs_f64();
    println!("{count} events in {seconds:.0} s, {:.0} a second{new}", count as f64 / seconds);
    Ok(())
}

fn through_the_function(deployed: &Deployed, count: usize) -> Result<String, String> {
    let mut function = deployed.start("workers-ingest")?;
    in_slices(count, DELIVERY, |told| {
        let reply = function.invoke(&delivery(told))?.payload;
        match reply["batchItemFailures"].as_array() {
            Some(failures) if failures.is_empty() => Ok(()),
            Some(failures) => Err(format!("{} of {} events were not ingested", failures.len(), told.len())),
            None => Err(format!("workers-ingest answered {reply}")),
        }
    })?;
    Ok(String::new())
}

fn in_bulk(deployed: &Deployed, count: usize) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let address = |name: &str| deployed.address(name).ok_or_else(|| format!("{name} is unknown"));
    let mut new = 0;
    runtime
        .block_on(async {
            let password = Secret::new(address("CLICKHOUSE_PASSWORD")?.to_owned());
            let (url, user) = (address("CLICKHOUSE_URL")?, address("CLICKHOUSE_USER")?);
            let clickhouse = ClickHouse::connect_lazy(url, user, &password, address("CLICKHOUSE_DATABASE")?)
                .map_err(|error| error.to_string())?;
            let database = Database::connect_lazy(address("DATABASE_URL")?).map_err(|error| error.to_string())?;
            Ok::<_, String>(Writer::new(clickhouse, &database))
        })
        .and_then(|writer| {
            in_slices(count, BLOCK, |told| {
                let events: Result<Vec<_>, _> =
                    told.iter().map(|told| Event::parse(&told.body, Some(told.time))).collect();
                let events = events.map_err(|rejection| rejection.to_string())?;
                new += runtime.block_on(writer.write(&events)).map_err(|error| error.to_string())?;
                Ok(())
            })
        })?;
    Ok(format!("; {new} were new"))
}

fn in_slices(count: usize, size: usize, mut take: impl FnMut(&[Told]) -> Result<(), String>) -> Result<(), String> {
    let mut history = History::new(count);
    let (mut done, mut output) = (0, std::io::stdout());
    let shown = output.is_terminal();
    while done < count {
        let told: Vec<Told> = history.by_ref().take(size).collect();
        take(&told)?;
        done += told.len();
        if shown {
            print!("\r{done} of {count} events");
            output.flush().map_err(|error| error.to_string())?;
        }
    }
    if shown {
        println!();
    }
    Ok(())
}
