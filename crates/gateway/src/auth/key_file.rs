//! The file of clients' keys.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::path::Path;

use routing::{Class, FairShare};
use serde::Deserialize;
use thiserror::Error;

use super::key_limits::KeyRules;
use crate::config::{Secret, is_sendable};
use crate::watched_file::FileProblem;

/// Largest file, bytes.
const MAX_FILE: u64 = 16 * 1024 * 1024;
/// Most keys in a file.
const MAX_KEYS: usize = 10_000;
/// Most models of a key.
const MAX_MODELS: usize = 1000;
/// Largest weight of a key.
const MAX_WEIGHT: u32 = 1000;
/// Longest name of a key, bytes.
const MAX_NAME: usize = 64;

/// Why a file of keys cannot be used. No message repeats what the file says.
#[derive(Debug, Error)]
pub(crate) enum KeyFileError {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is larger than {MAX_FILE} bytes")]
    TooLarge,
    /// Its own words may repeat a key, so they are left out.
    #[error(
        "is not a JSON list of objects with name, key and optional limits: line {line}, column {column}"
    )]
    NotKeys { line: usize, column: usize },
    #[error("has more than {MAX_KEYS} keys")]
    TooMany,
    #[error("key {0}: the name must have 1 to {MAX_NAME} bytes without control characters")]
    Name(usize),
    #[error("key {0}: the key must be non-empty and fit into a header")]
    Key(usize),
    #[error("key {0}: models must be up to {MAX_MODELS} names, none of them empty")]
    Models(usize),
    #[error("key {0}: weight must be from 1 to {MAX_WEIGHT}")]
    Weight(usize),
    #[error("key {0}: another key has the same name")]
    SameName(usize),
    #[error("key {0}: another name has the same key")]
    SameKey(usize),
}

/// A key as the file has it; the names of limits are those of `LiteLLM`'s keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyEntry {
    pub(super) name: String,
    pub(super) key: Secret,
    /// Requests per minute.
    rpm_limit: Option<NonZeroU32>,
    /// Tokens per minute, of prompts and answers.
    tpm_limit: Option<NonZeroU32>,
    /// Requests at a time, to their last byte.
    max_parallel_requests: Option<NonZeroU32>,
    /// The models and adapters that it may use; all if it is absent.
    pub(super) models: Option<BTreeSet<String>>,
    /// Its share beside other keys where requests wait in the fair order; 1 if it is absent.
    weight: Option<NonZeroU32>,
    /// The highest class of its requests.
    max_priority: Option<Class>,
}

impl KeyEntry {
    /// What its requests may take in the fair order.
    pub(super) fn share(&self) -> FairShare {
        let mut flow = DefaultHasher::new();
        self.name.hash(&mut flow);
        FairShare {
            flow: flow.finish(),
            weight: self.weight.unwrap_or(NonZeroU32::MIN),
            max_class: self.max_priority.unwrap_or_default(),
        }
    }

    pub(super) fn rules(&self) -> KeyRules {
        KeyRules {
            rpm_limit: self.rpm_limit,
            tpm_limit: self.tpm_limit,
            max_parallel_requests: self.max_parallel_requests,
        }
    }
}

impl FileProblem for KeyFileError {
    fn is_unreadable(&self) -> bool {
        matches!(self, Self::Unreadable(_))
    }
}

/// Reads a file of keys. Blocks.
///
/// # Errors
/// The first reason why it cannot be used; keys count from 1.
pub(super) fn read(path: &Path) -> Result<Vec<KeyEntry>, KeyFileError> {
    let mut text = Vec::new();
    File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(KeyFileError::TooLarge);
    }
    parse(&text)
}

fn parse(text: &[u8]) -> Result<Vec<KeyEntry>, KeyFileError> {
    let entries: Vec<KeyEntry> =
        serde_json::from_slice(text).map_err(|error| KeyFileError::NotKeys {
            line: error.line(),
            column: error.column(),
        })?;
    if entries.len() > MAX_KEYS {
        return Err(KeyFileError::TooMany);
    }
    let (mut names, mut keys) = (HashSet::new(), HashSet::new());
    for (number, entry) in (1..).zip(&entries) {
        let name = &entry.name;
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(KeyFileError::Name(number));
        }
        if !is_sendable(&entry.key) {
            return Err(KeyFileError::Key(number));
        }
        let models = entry.models.iter().flatten();
        if models.clone().count() > MAX_MODELS || models.into_iter().any(String::is_empty) {
            return Err(KeyFileError::Models(number));
        }
        if entry.weight.is_some_and(|weight| weight.get() > MAX_WEIGHT) {
            return Err(KeyFileError::Weight(number));
        }
        if !names.insert(name) {
            return Err(KeyFileError::SameName(number));
        }
        if !keys.insert(entry.key.expose()) {
            return Err(KeyFileError::SameKey(number));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_of_names_and_keys_is_read() {
        let text = br#"[{"name": "a", "key": "sk-1"}, {"name": "b", "key": "sk-2"}]"#;
        let names: Vec<_> = parse(text).unwrap().into_iter().map(|it| it.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(parse(b"[]").unwrap().is_empty());
    }

    #[test]
    fn weight_and_class_of_a_key_are_read() {
        let text = br#"[{"name": "a", "key": "1", "weight": 3, "max_priority": "batch"}, {"name": "b", "key": "2"}]"#;
        let shares: Vec<_> = parse(text).unwrap().iter().map(KeyEntry::share).collect();
        assert_eq!(
            (shares[0].weight.get(), shares[0].max_class),
            (3, Class::Batch)
        );
        assert_eq!(
            (shares[1].weight.get(), shares[1].max_class),
            (1, Class::Interactive)
        );
        assert_ne!(shares[0].flow, shares[1].flow);
    }

    #[test]
    fn broken_file_is_refused_and_no_message_repeats_a_key() {
        for (text, why) in [
            (r#"["sk-1"]"#, "line 1, column 7"),
            (r#"{"keys": "sk-1"}"#, "line 1"),
            (r#"[{"name": "a", "key": "sk-1""#, "line 1"),
            (r#"[{"name": "a", "key": 77777}]"#, "line 1"),
            (r#"[{"name": "a", "key": "sk-1", "sk-1": 5}]"#, "line 1"),
            (
                r#"[{"name": "a", "key": "sk-1", "rpm_limit": 0}]"#,
                "line 1",
            ),
            (
                r#"[{"name": "a", "key": "sk-1", "tpm_limit": -9}]"#,
                "line 1",
            ),
            (r#"[{"name": "a", "key": "sk-1", "models": "m"}]"#, "line 1"),
            (
                r#"[{"name": "a", "key": "sk-1", "models": [""]}]"#,
                "key 1: models",
            ),
            (r#"[{"name": "a", "key": "sk-1", "budget": 9}]"#, "line 1"),
            (r#"[{"name": "a", "key": "sk-1", "weight": 0}]"#, "line 1"),
            (
                r#"[{"name": "a", "key": "sk-1", "weight": 1001}]"#,
                "key 1: weight",
            ),
            (
                r#"[{"name": "a", "key": "sk-1", "max_priority": "urgent"}]"#,
                "line 1",
            ),
            (r#"[{"name": "", "key": "sk-1"}]"#, "key 1: the name"),
            (r#"[{"name": "a\n", "key": "sk-1"}]"#, "key 1: the name"),
            (r#"[{"name": "a", "key": ""}]"#, "key 1: the key"),
            (r#"[{"name": "a", "key": "sk-1 "}]"#, "key 1: the key"),
            (
                r#"[{"name": "a", "key": "sk-1"}, {"name": "a", "key": "sk-2"}]"#,
                "key 2: another key",
            ),
            (
                r#"[{"name": "a", "key": "sk-1"}, {"name": "b", "key": "sk-1"}]"#,
                "key 2: another name",
            ),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
            assert!(
                !error.contains("sk-1") && !error.contains("77777"),
                "{error}"
            );
        }
    }
}
