//! Each function with its sample event, next to an empty one, and to one that reads a secret and does nothing else.

use std::io::Write;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::DeflateEncoder;
use sandbox::Sandbox;
use sandbox::deployed::{Deployed, Environment, root};
use serde_json::Value;

use crate::figures::{median, megabytes, millis, print, ratio};

const EMPTY: &str = "bench-empty";
const SECRET: &str = "bench-secret";
/// A function that reads this one secret and no other.
const READS_SECRET: &str = "auth-jwks";
const COLD_STARTS: usize = 15;
const WARM_INVOCATIONS: usize = 200;
const WARM_SECONDS: Duration = Duration::from_secs(2);

const INIT_TARGET: f64 = 1.5;
const INIT_TARGET_WITH_DYNAMODB: f64 = 2.5;
const ZIP_TARGET: u64 = 4_000_000;

/// A function to measure.
struct Subject {
    name: String,
    environment: Environment,
    event: Value,
    init: Vec<Duration>,
    init_cpu: Vec<Duration>,
    first: Vec<Duration>,
    warm: Vec<Duration>,
    memory: u64,
    status: String,
}

impl Subject {
    fn new(name: &str, environment: Environment, event: Value) -> Self {
        Self {
            name: name.to_owned(),
            environment,
            event,
            init: Vec::new(),
            init_cpu: Vec::new(),
            first: Vec::new(),
            warm: Vec::new(),
            memory: 0,
            status: String::new(),
        }
    }

    fn start_cold(&mut self, deployed: &Deployed) -> Result<Sandbox, String> {
        let mut sandbox = Sandbox::start(&deployed.binary(&self.name), &self.environment)?;
        self.init.push(sandbox.init());
        self.init_cpu.push(sandbox.init_cpu());
        let reply = sandbox.invoke(&self.event)?;
        self.first.push(reply.took);
        // A worker's reply has no status.
        self.status = reply.payload["statusCode"].as_u64().map(|status| status.to_string()).unwrap_or_default();
        Ok(sandbox)
    }

    fn keep_warm(&mut self, mut sandbox: Sandbox) -> Result<(), String> {
        let started = Instant::now();
        while self.warm.len() < WARM_INVOCATIONS && started.elapsed() < WARM_SECONDS {
            self.warm.push(sandbox.invoke(&self.event)?.took);
        }
        self.memory = sandbox.peak_memory()?;
        Ok(())
    }

    fn uses_dynamodb(&self) -> bool {
        self.environment.keys().any(|variable| variable.ends_with("_TABLE"))
    }
}

/// Prints the table.
pub(crate) fn measure(deployed: &Deployed, only: &[String]) -> Result<(), String> {
    let sample = Deployed::sample("gateway-root")?;
    let mut subjects = vec![
        Subject::new(EMPTY, Environment::new(), sample.clone()),
        Subject::new(SECRET, deployed.environment(READS_SECRET), sample),
    ];
    for name in deployed.names().filter(|name| only.is_empty() || only.contains(name)) {
        subjects.push(Subject::new(name, deployed.environment(name), Deployed::sample(name)?));
    }
    // All once, then all again: whatever else the machine does meets every function alike.
    for round in 0..COLD_STARTS {
        for subject in &mut subjects {
            let sandbox = subject.start_cold(deployed)?;
            if round + 1 == COLD_STARTS {
                subject.keep_warm(sandbox)?;
            }
        }
    }

    let (empty_init, empty_cpu) = (median(&subjects[0].init), median(&subjects[0].init_cpu));
    let heads = [
        "function",
        "init ms",
        "x empty",
        "cpu ms",
        "x empty",
        "first ms",
        "warm ms",
        "peak MB",
        "binary MB",
        "zip MB",
        "reply",
        "",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for subject in &subjects {
        let binary = std::fs::read(deployed.binary(&subject.name)).map_err(|error| error.to_string())?;
        let zip = zipped(&subject.name, &binary)?;
        let init_ratio = ratio(median(&subject.init), empty_init);
        let target = if subject.uses_dynamodb() { INIT_TARGET_WITH_DYNAMODB } else { INIT_TARGET };
        let mut misses = Vec::new();
        if init_ratio > target && subject.name != SECRET {
            misses.push(format!("init > {target}x"));
        }
        if zip > ZIP_TARGET {
            misses.push("zip > 4 MB".to_owned());
        }
        rows.push(vec![
            subject.name.clone(),
            millis(median(&subject.init)),
            format!("{init_ratio:.2}"),
            millis(median(&subject.init_cpu)),
            format!("{:.2}", ratio(median(&subject.init_cpu), empty_cpu)),
            millis(median(&subject.first)),
            millis(median(&subject.warm)),
            megabytes(subject.memory),
            megabytes(binary.len() as u64),
            megabytes(zip),
            subject.status.clone(),
            misses.join(", "),
        ]);
    }
    println!(
        "Each function with its sample event, medians of {COLD_STARTS} cold starts and up to {WARM_INVOCATIONS} warm invocations"
    );
    println!(
        "(targets: init {INIT_TARGET}x the empty function, {INIT_TARGET_WITH_DYNAMODB}x with DynamoDB; zip 4 MB;\n\
         cpu is what the function itself works in init, the rest of it waits: for secrets, and for a processor)\n"
    );
    print(&rows);
    Ok(())
}

/// The size of the archive that is deployed. The empty function is not: zlib at its best comes near to its own.
fn zipped(name: &str, binary: &[u8]) -> Result<u64, String> {
    if let Ok(archive) = std::fs::metadata(root().join("target/lambda").join(name).join("bootstrap.zip")) {
        return Ok(archive.len());
    }
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(binary).map_err(|error| error.to_string())?;
    Ok(encoder.finish().map_err(|error| error.to_string())?.len() as u64)
}
