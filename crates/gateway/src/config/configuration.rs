//! Where options come from: what the user has typed, a file, defaults.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::check::check;
use super::error::ConfigError;
use super::file::{FileError, Origin, Problem, WithOrigins, over};
use super::options::Options;

/// Largest configuration file, bytes.
const MAX_FILE: u64 = 4 << 20;

/// What options are made of; made anew by every reload.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The options where the file says nothing.
    base: Options,
    /// Those of them that win over the file.
    given: BTreeSet<&'static str>,
}

/// Options that have been checked, and where each comes from.
#[derive(Clone, Debug)]
pub struct Loaded {
    options: Options,
    origins: BTreeMap<&'static str, Origin>,
}

impl Configuration {
    /// `base` holds where `base.config` names no file, or the file says nothing. Options of these
    /// names are as in `base` whatever the file says; names that are no options are left out.
    pub fn new(base: Options, given: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let known = |name: &str| Options::NAMES.iter().find(|known| **known == name);
        let given = given.into_iter();
        let given = given
            .filter_map(|name| known(name.as_ref()).copied())
            .collect();
        Self { base, given }
    }

    /// The file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.base.config.as_deref().map(Path::new)
    }

    /// Reads the file and checks everything. Blocks.
    ///
    /// # Errors
    /// What is wrong, with its place in the file.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let Some(path) = self.path() else {
            check(&self.base)?;
            let given = self.given.iter().map(|name| (*name, Origin::Given));
            return Ok(Loaded {
                options: self.base.clone(),
                origins: given.collect(),
            });
        };
        let loaded = read(path).and_then(|text| over(&self.base, &self.given, &text));
        loaded.map(Loaded::from).map_err(|problems| {
            ConfigError::File(FileError {
                path: path.display().to_string(),
                problems,
            })
        })
    }
}

fn read(path: &Path) -> Result<String, Vec<Problem>> {
    let unreadable = |why: String| vec![Problem::nowhere(why)];
    let size =
        fs::metadata(path).map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    if size.len() > MAX_FILE {
        return Err(unreadable(format!("is larger than {MAX_FILE} bytes")));
    }
    fs::read_to_string(path).map_err(|error| unreadable(format!("cannot be read: {error}")))
}

impl From<&Options> for Configuration {
    /// Options that differ from their default are given.
    fn from(options: &Options) -> Self {
        Self::new(options.clone(), options.differing(&Options::default()))
    }
}

impl From<WithOrigins> for Loaded {
    fn from((options, origins): WithOrigins) -> Self {
        Self { options, origins }
    }
}

impl Loaded {
    /// The options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Where an option comes from.
    pub fn origin(&self, name: &str) -> Origin {
        self.origins.get(name).copied().unwrap_or(Origin::Default)
    }

    /// The file, if there is one.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        self.options.config.as_ref().map(PathBuf::from)
    }

    /// Every option by name: its value, secrets masked, and where it comes from.
    pub(crate) fn to_json(&self) -> Value {
        let values = serde_json::to_value(self.options.masked()).unwrap_or_default();
        let option = |name: &&'static str| {
            let origin = self.origin(name).to_string();
            let shown = json!({"value": values[*name], "origin": origin});
            ((*name).to_owned(), shown)
        };
        Value::Object(Options::NAMES.iter().map(option).collect::<Map<_, _>>())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::from_value;

    use super::*;

    /// A file that is removed at the end.
    struct File(PathBuf);

    impl File {
        fn new(name: &str, text: &str) -> Self {
            let name = format!("smg-config-{}-{name}.yaml", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::write(&path, text).unwrap();
            Self(path)
        }

        fn load(&self, mut base: Options, given: &[&str]) -> Result<Loaded, ConfigError> {
            base.config = Some(self.0.display().to_string());
            Configuration::new(base, given).load()
        }

        /// Its mistakes, with `F` for its name.
        fn mistakes(&self) -> String {
            let error = self.load(Options::default(), &[]).unwrap_err();
            error.to_string().replace(&*self.0.to_string_lossy(), "F")
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn file_is_over_defaults_and_under_what_is_given() {
        let file = File::new(
            "layers",
            "port: 8080\npolicy: random # why not\nhost: '::'\n",
        );
        let base = Options {
            port: 30_000,
            queue_size: 7,
            ..Options::default()
        };
        let loaded = file.load(base, &["port", "queue_size"]).unwrap();
        let options = loaded.options();
        assert_eq!((options.port, options.queue_size), (30_000, 7));
        assert_eq!((options.policy.as_str(), &*options.host), ("random", "::"));
        let shown = loaded.to_json();
        assert_eq!(shown["port"], json!({"value": 30_000, "origin": "given"}));
        assert_eq!(shown["policy"]["origin"], "file, line 2");
        assert_eq!(shown["queue_timeout_secs"]["origin"], "default");
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        let text = "polcy: random\nport: 70000\nqueue_size: many\ntls-cert-path: /x\nworker_urls: http://a:1\n";
        let error = File::new("mistakes", text).mistakes();
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(
            lines,
            [
                "Configuration error: F:1:1: unknown key 'polcy'; did you mean 'policy'?",
                "F:2:7: port: invalid value: integer `70000`, expected an integer from 0 to 65535",
                "F:3:13: queue_size: invalid type: string \"many\", expected an integer from 0 to 2^64-1",
                "F:4:1: unknown key 'tls-cert-path'; the option is 'server_cert_path'",
                "F:5:14: worker_urls: invalid type: string \"http://a:1\", expected a list",
            ]
        );
    }

    #[test]
    fn broken_rule_is_found_at_the_option_that_breaks_it() {
        for (text, place, why) in [
            (
                "port: 1\ncache_threshold: 2.0\n",
                "F:2:18: ",
                "between 0 and 1",
            ),
            (
                "worker_urls:\n- http://a:1\n- ftp://b\n",
                "F:3:3: ",
                "worker_url",
            ),
            ("enable_wasm: true\n", "F:1:14: ", "WASM"),
            (
                "service_discovery: true\nselector: {a: b}\nworker_urls: [http://a:1]\n",
                "F:3:15: ",
                "not used with service_discovery",
            ),
            (
                "decode_urls: [http://a:1]\n",
                "F:1:14: ",
                "pd_disaggregation",
            ),
        ] {
            let error = File::new("rules", text).mistakes();
            assert!(error.contains(place) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn secrets_are_neither_shown_nor_repeated() {
        let text =
            "api_key: s3cret\ncontrol_plane_auth: {api_keys: [{id: a, name: b, key: s3cret}]}\n";
        let file = File::new("secrets", text);
        let loaded = file.load(Options::default(), &[]).unwrap();
        assert!(!loaded.to_json().to_string().contains("s3cret"));
        assert_eq!(loaded.to_json()["api_key"]["value"], "MASKED");
        for wrong in [
            "api_key: [s3cret]\n",
            "control_plane_auth: {api_keys: [{id: a, name: b, key: [s3cret]}]}\n",
            "redis_config: s3cret\n",
        ] {
            let error = File::new("wrong", wrong).mistakes();
            assert!(
                !error.contains("s3cret") && error.contains("F:1:"),
                "{error}"
            );
        }
    }

    #[test]
    fn every_secret_is_masked() {
        let all = json!({
            "api_key": "s3cret",
            "oracle_config": {"password": "s3cret", "username": null, "connect_descriptor": null,
                "wallet_path": null, "pool_min": 1, "pool_max": 1, "pool_timeout_secs": 1},
            "postgres_config": {"db_url": "s3cret", "pool_max": 1},
            "redis_config": {"url": "s3cret", "pool_max": 1, "retention_days": null},
            "control_plane_auth": {"api_keys": [{"id": "a", "name": "b", "key": "s3cret"}]},
            "shared_state": "s3cret",
        });
        let named: BTreeSet<_> = all
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(named, Options::SECRET.iter().copied().collect());
        let options: Options = from_value(all).unwrap();
        let shown = serde_json::to_string(&options.masked()).unwrap();
        assert!(!shown.contains("s3cret"), "{shown}");
        assert_eq!(shown.matches("MASKED").count(), 6);
    }

    #[test]
    fn missing_file_is_named() {
        let base = Options {
            config: Some("/nowhere/gateway.yaml".to_owned()),
            ..Options::default()
        };
        let error = Configuration::from(&base).load().unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("/nowhere/gateway.yaml: cannot be read"),
            "{error}"
        );
    }
}
