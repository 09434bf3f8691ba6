//! What the running stack has deployed: names, environments, binaries, sample events.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use sandbox::Sandbox;
use serde_json::Value;

/// A function's environment.
pub(crate) type Environment = BTreeMap<String, String>;

/// The deployed functions.
pub(crate) struct Deployed {
    environments: BTreeMap<String, Environment>,
    binaries: PathBuf,
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Deployed {
    /// Asks the running stack.
    pub(crate) fn read(profile: &str) -> Result<Self, String> {
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
        let environments = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let binaries = own.parent().map(Path::to_owned).unwrap_or_default();
        Ok(Self { environments, binaries })
    }

    /// Every function's name.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.environments.keys()
    }

    /// Where the executable of a function, or of this package, is.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// A function's environment, with room for as many requests as a benchmark makes.
    pub(crate) fn environment(&self, name: &str) -> Environment {
        let mut environment = self.environments.get(name).cloned().unwrap_or_default();
        environment.insert("RATE_LIMIT_PER_MINUTE".to_owned(), "1000000000".to_owned());
        environment
    }

    /// Starts a function in a sandbox.
    pub(crate) fn start(&self, name: &str) -> Result<Sandbox, String> {
        Sandbox::start(&self.binary(name), &self.environment(name))
    }

    /// Starts an executable of this package with the environment of a function.
    pub(crate) fn start_own(&self, name: &str, like: &str) -> Result<Sandbox, String> {
        Sandbox::start(&self.binary(name), &self.environment(like))
    }

    /// The function's event in `events/`.
    pub(crate) fn sample(name: &str) -> Result<Value, String> {
        let path = root().join("events").join(format!("{name}.json"));
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
    }
}
