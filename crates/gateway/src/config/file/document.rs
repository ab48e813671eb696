//! A file of options, over those that are given elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};

use super::problem::{Place, Problem};
use super::yaml::{self, Entry};
use crate::config::check::check;
use crate::config::{ConfigError, Options, plain_words};

/// Least similarity (0 to 1) of a name that is worth a hint.
const SIMILAR: f64 = 0.75;

/// Flags whose options have other names.
const FLAGS: [(&str, &str); 13] = [
    ("prefill", "prefill_urls"),
    ("decode", "decode_urls"),
    ("tls_cert_path", "server_cert_path"),
    ("tls_key_path", "server_key_path"),
    ("control_plane_api_keys", "control_plane_auth.api_keys"),
    (
        "control_plane_audit_enabled",
        "control_plane_auth.audit_enabled",
    ),
    ("jwt_issuer", "control_plane_auth.jwt.issuer"),
    ("jwt_audience", "control_plane_auth.jwt.audience"),
    ("jwt_jwks_uri", "control_plane_auth.jwt.jwks_uri"),
    ("jwt_role_mapping", "control_plane_auth.jwt.role_mapping"),
    ("redis_url", "redis_config.url"),
    ("postgres_db_url", "postgres_config.db_url"),
    ("oracle_username", "oracle_config.username"),
];

/// Where the value of an option comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing names the option.
    Default,
    /// A flag, or a keyword of `Router`.
    Given,
    /// The configuration file, here.
    File(Place),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Given => f.write_str("given"),
            Self::File(Place { line, .. }) => write!(f, "file, line {line}"),
        }
    }
}

/// Options, and where each comes from, by name.
pub(crate) type WithOrigins = (Options, BTreeMap<&'static str, Origin>);

/// The options of a file over `base`; those in `given` stay as they are.
///
/// # Errors
/// Every mistake in the file; or, once it reads well, the first rule that all options together
/// break.
pub(crate) fn over(
    base: &Options,
    given: &BTreeSet<&'static str>,
    text: &str,
) -> Result<WithOrigins, Vec<Problem>> {
    let entries = yaml::mapping(text)?;
    let (mut origins, mut problems) = (BTreeMap::new(), Vec::new());
    let mut taken: Vec<(&'static str, &Entry)> = Vec::new();
    for entry in &entries {
        match option(entry) {
            Ok(name) => {
                origins.insert(name, Origin::File(entry.key_at));
                taken.push((name, entry));
            }
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    for name in given {
        origins.insert(name, Origin::Given);
    }
    taken.retain(|(name, _)| !given.contains(name));
    let base = serde_json::to_value(base).unwrap_or_default();
    let mut all: Map<String, Value> = serde_json::from_value(base).unwrap_or_default();
    for (name, entry) in &taken {
        all.insert((*name).to_owned(), entry.item.value.clone());
    }
    // Each has been read alone before.
    let options: Options = serde_json::from_value(Value::Object(all))
        .map_err(|error| vec![Problem::nowhere(error.to_string())])?;
    let found = check(&options).and_then(|()| check_used(&options));
    found.map_err(|error| vec![locate(&error, &taken)])?;
    Ok((options, origins))
}

/// The option of an entry whose value fits it.
fn option(entry: &Entry) -> Result<&'static str, Problem> {
    let key = &*entry.key;
    let mut names = Options::NAMES.iter();
    let Some(name) = names.find(|name| **name == key) else {
        let message = format!("unknown key '{key}'{}", hint(key));
        return Err(Problem::at(entry.key_at, message));
    };
    if *name == "config" {
        let why = "config names a file like this one, so it has no place in it";
        return Err(Problem::at(entry.key_at, why));
    }
    let alone = Map::from_iter([(key.to_owned(), entry.item.value.clone())]);
    match serde_json::from_value::<Options>(Value::Object(alone)) {
        Ok(_) => Ok(name),
        Err(error) if Options::SECRET.contains(name) && shows_a_value(&error.to_string()) => {
            let message = format!("{name}: the value does not fit here");
            Err(Problem::at(entry.item.at, message))
        }
        Err(error) => {
            let message = format!("{name}: {}", plain_words(&error.to_string()));
            Err(Problem::at(entry.item.place_in(&message), message))
        }
    }
}

/// Whether serde's message repeats a value.
fn shows_a_value(message: &str) -> bool {
    !["unknown field", "missing field", "unknown variant"]
        .iter()
        .any(|start| message.starts_with(start))
}

/// What the user may have meant by a key.
fn hint(key: &str) -> String {
    let plain = key.trim_start_matches('-').replace('-', "_");
    let mut flags = FLAGS.iter();
    if let Some((_, option)) = flags.find(|(flag, _)| **flag == plain) {
        return format!("; the option is '{option}'");
    }
    let similarity = |name: &str| strsim::jaro_winkler(name, &plain);
    let names = Options::NAMES.iter();
    let nearest = names.max_by(|one, other| similarity(one).total_cmp(&similarity(other)));
    match nearest {
        Some(name) if similarity(name) >= SIMILAR => format!("; did you mean '{name}'?"),
        _ => String::new(),
    }
}

/// Options that would not be used: the command line says so in a warning that a file has no
/// reader for.
fn check_used(options: &Options) -> Result<(), ConfigError> {
    if options.service_discovery && !options.worker_urls.is_empty() {
        let why = "is not used with service_discovery; leave one of them out";
        let urls = format!("{:?}", options.worker_urls);
        return Err(ConfigError::invalid("worker_urls", urls, why));
    }
    let is_set = |urls: usize| urls > 0 && !options.pd_disaggregation;
    let prefill = options.prefill_urls.as_ref().map_or(0, Vec::len);
    let decode = options.decode_urls.as_ref().map_or(0, Vec::len);
    for (name, urls) in [("prefill_urls", prefill), ("decode_urls", decode)] {
        if is_set(urls) {
            let why = "needs 'pd_disaggregation: true'";
            return Err(ConfigError::invalid(
                name,
                format_args!("{urls} workers"),
                why,
            ));
        }
    }
    Ok(())
}

/// A broken rule at the place of the option that breaks it, where the file has that.
fn locate(error: &ConfigError, taken: &[(&'static str, &Entry)]) -> Problem {
    let message = error.to_string();
    let message = message
        .trim_start_matches("Configuration error: ")
        .to_owned();
    let (ConfigError::Invalid { field, .. } | ConfigError::Unbuilt { field, .. }) = error else {
        return Problem::nowhere(message);
    };
    let is_named =
        |name: &str| name == *field || (*field == "worker_url" && name.ends_with("_urls"));
    let mut named = taken.iter().filter(|(name, _)| is_named(name));
    let exact = named.find(|(_, entry)| entry.item.place_in(&message) != entry.item.at);
    let any = exact.or_else(|| taken.iter().find(|(name, _)| is_named(name)));
    match any {
        Some((_, entry)) => Problem::at(entry.item.place_in(&message), message),
        None => Problem::nowhere(message),
    }
}
