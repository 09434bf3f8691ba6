//! What the running stack has deployed: names, environments, binaries, sample events.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::Sandbox;
use serde_json::{Value, json};

/// A function's environment.
pub type Environment = BTreeMap<String, String>;

/// The deployed functions.
pub struct Deployed {
    environments: BTreeMap<String, Environment>,
    addresses: Environment,
    binaries: PathBuf,
}

/// What the stack tells.
#[derive(serde::Deserialize)]
struct Told {
    functions: BTreeMap<String, Environment>,
    addresses: Environment,
}

/// The repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Deployed {
    /// Asks the running stack of that name; the executables are in the folder.
    ///
    /// # Errors
    /// When the stack does not run.
    pub fn read(profile: &str, binaries: PathBuf) -> Result<Self, String> {
        let python = root().join(".local/tools/venv/bin/python");
        let output = Command::new(&python)
            .arg(root().join("tests/bench/environments.py"))
            .arg(profile)
            .output()
            .map_err(|error| format!("{}: {error}; run `make up` first", python.display()))?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).trim().lines().last().unwrap_or_default().to_owned();
            return Err(format!("the stack does not tell its functions ({reason}); run `make up` first"));
        }
        let told: Told = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        Ok(Self { environments: told.functions, addresses: told.addresses, binaries })
    }

    /// An address of the stack, by the name of its variable.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<&str> {
        self.addresses.get(name).map(String::as_str)
    }

    /// Every function's name.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.environments.keys()
    }

    /// Where the executable of a function, or of this package, is.
    #[must_use]
    pub fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// A function's environment, with room for as many requests as a benchmark makes, and without a collector of
    /// spans, which a deployment has only where it is given one.
    #[must_use]
    pub fn environment(&self, name: &str) -> Environment {
        let mut environment = self.environments.get(name).cloned().unwrap_or_default();
        environment.insert("RATE_LIMIT_PER_MINUTE".to_owned(), "1000000000".to_owned());
        environment.remove("OTEL_EXPORTER_OTLP_ENDPOINT");
        environment
    }

    /// Starts a function in a sandbox.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(&self, name: &str) -> Result<Sandbox, String> {
        Sandbox::start(&self.binary(name), &self.environment(name))
    }

    /// Starts an executable of this package with the environment of a function.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_own(&self, name: &str, like: &str) -> Result<Sandbox, String> {
        Sandbox::start(&self.binary(name), &self.environment(like))
    }

    /// The function's event in `events/`.
    ///
    /// # Errors
    /// When there is none.
    pub fn sample(name: &str) -> Result<Value, String> {
        let path = root().join("events").join(format!("{name}.json"));
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// The same from another address, with another body and credential.
    ///
    /// # Errors
    /// When there is none.
    pub fn event(name: &str, address: &str, body: Option<&Value>, bearer: Option<&str>) -> Result<Value, String> {
        let mut event = Self::sample(name)?;
        event["requestContext"]["identity"]["sourceIp"] = address.into();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
        event["requestContext"]["requestTimeEpoch"] = u64::try_from(now.as_millis()).unwrap_or_default().into();
        // A local function trusts one proxy, which names the client here.
        event["headers"]["X-Forwarded-For"] = address.into();
        event["multiValueHeaders"]["X-Forwarded-For"] = json!([address]);
        if let Some(body) = body {
            event["body"] = body.to_string().into();
        }
        if let Some(bearer) = bearer {
            event["headers"]["Authorization"] = format!("Bearer {bearer}").into();
            event["multiValueHeaders"]["Authorization"] = json!([format!("Bearer {bearer}")]);
        }
        Ok(event)
    }
}

/// An address that no other client has: of IPv6, where limits count the first half, which holds 56 random bits here.
#[must_use]
pub fn random_address() -> String {
    let [.., a, b, c, d, e, f, g] = uuid::Uuid::now_v7().into_bytes();
    std::net::Ipv6Addr::from([0xfd, a, b, c, d, e, f, g, 0, 0, 0, 0, 0, 0, 0, 1]).to_string()
}
