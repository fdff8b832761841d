//! Where settings come from.
//!
//! In:     a TOML file, pairs of environment names and values, pairs of setting paths and values.
//! Out:    [`Loaded`]: a validated [`Config`], and the names that were set in vain.
//! Never:  reads the process' environment itself; repeats a secret in an error.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use serde::Deserialize as _;
use toml::{Table, Value};

use super::bounds::BOUNDS;
use super::environment::{CLAMPED, boolean, ignored, is_official, names_of, official_url};
use super::paths::{SECRETS, defaults, get, paths};
use super::{Config, Error, invalid};

/// Settings, and what was ignored on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Environment names that look like ours or the official container's and change nothing here.
    pub ignored: Vec<String>,
}

impl Config {
    /// Defaults, then the file, then the environment, then flags; later ones win.
    ///
    /// An empty environment value counts as not set, because compose files write
    /// `NAME: ${NAME:-}`. Flags are pairs of a setting's path (`server.bind`) and its text.
    ///
    /// # Errors
    /// [`Error`] names the file's line, or the setting as the user wrote it.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Loaded, Error> {
        let mut settings = Settings::default();
        if let Some(path) = file {
            settings.read_file(path)?;
        }
        let environment: BTreeMap<String, String> =
            environment.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        settings.read_environment(&environment)?;
        for (path, text) in flags {
            let name = format!("--{}", path.rsplit('.').next().unwrap_or(path));
            settings.set_text(path, &name, &text)?;
        }
        let config = settings.finish()?;
        let ignored = ignored(&environment);
        Ok(Loaded { config, ignored })
    }
}

/// Values by path, and what the user called each of them.
#[derive(Default)]
struct Settings {
    values: Table,
    names: BTreeMap<String, String>,
}

impl Settings {
    fn read_file(&mut self, path: &Path) -> Result<(), Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let refuse = |error: &toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start).min(text.len());
            let before = text.as_bytes().get(..start).unwrap_or_default();
            let line = before.split(|&b| b == b'\n').count();
            let written = text.lines().nth(line - 1).unwrap_or_default();
            let secret = ["url", "secret", "api_keys"].iter().any(|word| written.contains(word));
            let problem =
                if secret { "this value is not text".into() } else { error.message().into() };
            Error::Parse { path: path.to_owned(), line, problem }
        };
        toml::from_str::<Config>(&text).map_err(|error| refuse(&error))?;
        self.values = text.parse().map_err(|error| refuse(&error))?;
        Ok(())
    }

    fn read_environment(&mut self, environment: &BTreeMap<String, String>) -> Result<(), Error> {
        for path in paths() {
            for name in names_of(&path) {
                if let Some(text) = environment.get(&name) {
                    self.set_text(&path, &name, text)?;
                    break;
                }
                if !SECRETS.contains(&path.as_str()) {
                    continue;
                }
                let name = format!("{name}_FILE");
                if let Some(file) = environment.get(&name) {
                    let file = Path::new(file);
                    let text = std::fs::read_to_string(file)
                        .map_err(|source| Error::Read { path: file.to_owned(), source })?;
                    self.set_text(&path, &name, text.trim_end_matches(['\r', '\n']))?;
                    break;
                }
            }
        }
        if !self.names.contains_key("database.url")
            && let Some(host) = environment.get("DB_HOST")
        {
            let url = official_url(host, environment)?;
            self.set_text("database.url", "DB_HOST", &url)?;
        }
        self.read_bind(environment)?;
        if !self.names.contains_key("log.format")
            && get(&self.values, "log.format").is_none()
            && is_official(environment)
        {
            self.set_text("log.format", "LOG_FORMAT", "supabase")?;
        }
        if let Some(suffix) = environment.get("SLOT_NAME_SUFFIX") {
            let base = get(&self.values, "replication.slot").and_then(Value::as_str);
            let slot = format!("{}_{suffix}", base.unwrap_or(&Config::default().replication.slot));
            self.set_text("replication.slot", "SLOT_NAME_SUFFIX", &slot)?;
        }
        Ok(())
    }

    /// `WALCAST_BIND` may leave the port to `PORT`, so that an image can set the address alone.
    fn read_bind(&mut self, environment: &BTreeMap<String, String>) -> Result<(), Error> {
        let default = get(&self.values, "server.bind").and_then(Value::as_str).map(str::to_owned);
        let mut bind = match default.as_deref().map(str::parse) {
            Some(Ok(address)) => address,
            _ => Config::default().server.bind,
        };
        if let Some(port) = environment.get("PORT") {
            let problem = "must be a port, 0 to 65535";
            bind.set_port(port.trim().parse().map_err(|_| invalid("PORT", problem))?);
            self.set_text("server.bind", "PORT", &bind.to_string())?;
        }
        if let Some(text) = environment.get("WALCAST_BIND") {
            let address = text.trim().trim_start_matches('[').trim_end_matches(']');
            if let Ok(address) = address.parse() {
                bind.set_ip(address);
                self.set_text("server.bind", "WALCAST_BIND", &bind.to_string())?;
            } else {
                self.set_text("server.bind", "WALCAST_BIND", text)?;
                bind = text.parse().unwrap_or(bind);
            }
        }
        let Some(version) = environment.get("REALTIME_IP_VERSION") else { return Ok(()) };
        // It chooses a version of "every address" or of "this machine", never one for the other.
        let address = match version.trim().to_ascii_lowercase().as_str() {
            "ipv6" if bind.ip() == Ipv4Addr::UNSPECIFIED => Ipv6Addr::UNSPECIFIED.into(),
            "ipv6" if bind.ip() == Ipv4Addr::LOCALHOST => Ipv6Addr::LOCALHOST.into(),
            "ipv4" if bind.ip() == Ipv6Addr::UNSPECIFIED => Ipv4Addr::UNSPECIFIED.into(),
            "ipv4" if bind.ip() == Ipv6Addr::LOCALHOST => Ipv4Addr::LOCALHOST.into(),
            _ => bind.ip(),
        };
        if address == bind.ip() {
            return Ok(());
        }
        bind.set_ip(address);
        self.set_text("server.bind", "REALTIME_IP_VERSION", &bind.to_string())
    }

    /// Reads `text` as the kind of value that the setting has.
    fn set_text(&mut self, path: &str, name: &str, text: &str) -> Result<(), Error> {
        let defaults = defaults();
        let Some(default) = get(&defaults, path) else {
            return Err(invalid(name, "is not a setting"));
        };
        let value = match default {
            Value::Integer(_) => {
                let number = text.trim().parse::<i64>();
                let number = number.map_err(|_| invalid(name, "must be a whole number"))?;
                let bounds = BOUNDS.iter().find(|(bounded, _, _)| *bounded == path);
                let bounds = bounds.filter(|_| CLAMPED.contains(&name));
                let clamp = |&(_, least, most): &(_, i64, i64)| number.clamp(least, most);
                Value::Integer(bounds.map_or(number, clamp))
            }
            Value::Boolean(_) => Value::Boolean(boolean(name, text)?),
            Value::Array(_) => list(name, text)?,
            Value::Table(_) => {
                let json: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_str(text)
                        .map_err(|_| invalid(name, "must be a JSON object"))?;
                let table = Table::try_from(json)
                    .map_err(|_| invalid(name, "must be a JSON object without null"))?;
                Value::Table(table)
            }
            Value::String(_) | Value::Float(_) | Value::Datetime(_) => Value::String(text.into()),
        };
        self.put(path, name, value)
    }

    /// Sets one value, checked by the type of its field.
    fn put(&mut self, path: &str, name: &str, value: Value) -> Result<(), Error> {
        let (section, field) = path.split_once('.').unwrap_or(("", path));
        let mut alone = Table::new();
        alone.insert(
            section.into(),
            Value::Table(Table::from_iter([(field.into(), value.clone())])),
        );
        if let Err(error) = Config::deserialize(Value::Table(alone)) {
            let secret = SECRETS.contains(&path);
            return Err(invalid(name, if secret { "is malformed" } else { error.message() }));
        }
        let section = self.values.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(section) = section {
            section.insert(field.into(), value);
        }
        self.names.insert(path.into(), name.into());
        Ok(())
    }

    fn finish(self) -> Result<Config, Error> {
        let config = Config::deserialize(Value::Table(self.values))
            .map_err(|error| invalid("settings", error.message()))?;
        config.validate_as(&|path| self.names.get(path).map_or(path, String::as_str).to_owned())?;
        Ok(config)
    }
}

/// Names between commas, or a JSON array of them.
fn list(name: &str, text: &str) -> Result<Value, Error> {
    let names: Vec<String> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(|_| invalid(name, "must be a JSON array of names"))?
    } else {
        text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
    };
    Ok(Value::Array(names.into_iter().map(Value::String).collect()))
}
