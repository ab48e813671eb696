//! The keys of clients, by the file that names them, as it is now.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use routing::FairShare;
use routing::quota::SharedLimits;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use super::digest::KeyDigest;
use super::key_file::{self, KeyEntry, KeyFileError};
use super::key_limits::{KeyLimits, KeyShare, Reached, Sharing, TokenShare};
use crate::error::Error;
use crate::telemetry::{KeyMetrics, Metrics};
use crate::watched_file::{LOOK_INTERVAL, Look, WatchedFile};

/// Keys with series of their own; the others are counted together.
const MAX_SERIES: usize = 200;
/// The name under which those are counted.
const OTHERS: &str = "other";

/// A client's key.
#[derive(Debug)]
pub(crate) struct ClientKey {
    pub(super) name: String,
    limits: Option<Arc<KeyLimits>>,
    /// The models and adapters that it may use; `None` for all.
    pub(super) models: Option<BTreeSet<String>>,
    /// What its requests may take where they wait.
    pub(super) share: FairShare,
    metrics: KeyMetrics,
}

impl ClientKey {
    /// Lets a request in under the key's limits; `None` where it has none.
    ///
    /// # Errors
    /// [`Error::KeyLimit`].
    pub(super) fn enter(&self) -> Result<Option<KeyShare>, Error> {
        let Some(limits) = &self.limits else {
            return Ok(None);
        };
        limits.enter().map(Some).map_err(|why| self.refuse(why))
    }

    /// Takes so many tokens of its limit; `None` where it has none.
    ///
    /// # Errors
    /// [`Error::KeyLimit`].
    pub(super) fn take_tokens(&self, tokens: u64) -> Result<Option<TokenShare>, Error> {
        let Some(limits) = &self.limits else {
            return Ok(None);
        };
        let taken = limits.take_tokens(tokens);
        taken.map_err(|why| self.refuse(why))
    }

    /// Counts a request that is refused because of `limit`.
    pub(super) fn count_refusal(&self, limit: &str) {
        self.metrics.refused(limit);
    }

    fn refuse(&self, Reached { limit, wait }: Reached) -> Error {
        self.count_refusal(limit);
        Error::KeyLimit {
            limit,
            retry_after: wait.as_secs() + u64::from(wait.subsec_nanos() > 0),
        }
    }
}

type Table = HashMap<KeyDigest, Arc<ClientKey>>;

/// The keys in force.
#[derive(Debug)]
pub(crate) struct ClientKeys {
    table: ArcSwap<Table>,
    file: Mutex<WatchedFile>,
    metrics: Arc<Metrics>,
    /// Where other gateways share the limits.
    shared: Option<Arc<SharedLimits>>,
}

impl ClientKeys {
    /// Reads the file. Blocks.
    ///
    /// # Errors
    /// It cannot be read or used.
    pub(crate) fn open(
        path: &Path,
        metrics: &Arc<Metrics>,
        shared: Option<Arc<SharedLimits>>,
    ) -> Result<Arc<Self>, KeyFileError> {
        let (file, entries) = WatchedFile::open(path, key_file::read)?;
        let keys = Self {
            table: ArcSwap::default(),
            file: Mutex::new(file),
            metrics: Arc::clone(metrics),
            shared,
        };
        keys.replace(entries);
        Ok(Arc::new(keys))
    }

    /// The key that a client shows for a request to workers; it counts as used.
    pub(super) fn find(&self, shown: &[u8]) -> Option<Arc<ClientKey>> {
        self.identify(shown)
            .inspect(|key| key.metrics.requests.inc())
    }

    /// The key that a client shows.
    pub(super) fn identify(&self, shown: &[u8]) -> Option<Arc<ClientKey>> {
        // By digest: how long it takes says nothing about a key.
        self.table.load().get(&KeyDigest::of(shown)).cloned()
    }

    /// Keeps the keys as the file has them; runs until dropped.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let keys = Arc::clone(&self);
            // A volume that does not answer holds up a thread of its own only.
            let _ = spawn_blocking(move || keys.look()).await;
        }
    }

    /// Reads the file again if it has changed. Blocks.
    fn look(&self) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let look = file.look(key_file::read);
        let path = file.path().display();
        match look {
            Look::Unchanged => {}
            Look::Changed(entries) => {
                let keys = entries.len();
                self.replace(entries);
                self.metrics.keys_reloaded("success");
                info!(%path, keys, "keys of clients have changed");
            }
            Look::Failed(why) => {
                self.metrics.keys_reloaded("failure");
                error!(%path, %why, "keys of clients cannot be read, the old ones stay in force");
            }
        }
    }

    /// Another file is read from now on: keys that it does not name are counted no longer.
    pub(crate) fn retire(&self, successor: Option<&Self>) {
        let new = successor.map(|keys| keys.table.load_full());
        let new = new.iter().flat_map(|table| table.values());
        let counted: HashSet<_> = new.map(|key| &key.metrics.label).collect();
        for key in self.table.load().values() {
            if !counted.contains(&key.metrics.label) {
                key.metrics.forget();
            }
        }
    }

    fn replace(&self, entries: Vec<KeyEntry>) {
        let before = self.table.load_full();
        let old: HashMap<_, _> = before
            .values()
            .map(|key| (key.name.as_str(), key))
            .collect();
        let make = |(at, entry): (usize, KeyEntry)| {
            let label = if at < MAX_SERIES { &entry.name } else { OTHERS };
            let metrics = self.metrics.key(label);
            let digest = KeyDigest::of(entry.key.expose().as_bytes());
            // What a key has taken of limits that stay is not forgotten.
            let rules = entry.rules();
            let before = old.get(entry.name.as_str());
            let before = before.and_then(|key| key.limits.as_ref());
            let limits = match before {
                Some(limits) if limits.rules == rules => Some(Arc::clone(limits)),
                before => {
                    let sharing = self.shared.as_deref().map(|limits| Sharing {
                        limits,
                        key: &entry.name,
                    });
                    KeyLimits::new(rules, before.map(Arc::as_ref), sharing)
                }
            };
            let key = ClientKey {
                share: entry.share(),
                name: entry.name,
                limits,
                models: entry.models,
                metrics,
            };
            (digest, Arc::new(key))
        };
        let new: Arc<Table> = Arc::new(entries.into_iter().enumerate().map(make).collect());
        self.table.store(Arc::clone(&new));
        let counted: HashSet<_> = new.values().map(|key| &key.metrics.label).collect();
        for key in before.values() {
            if !counted.contains(&key.metrics.label) {
                key.metrics.forget();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    struct Stage {
        dir: PathBuf,
        metrics: Arc<Metrics>,
    }

    impl Stage {
        fn new(name: &str) -> Self {
            let dir = format!("smg-keys-{}-{name}", std::process::id());
            let dir = std::env::temp_dir().join(dir);
            fs::create_dir_all(&dir).unwrap();
            let metrics = Arc::new(Metrics::new(None).unwrap());
            Self { dir, metrics }
        }

        fn write(&self, file: &str, names: &[&str]) -> PathBuf {
            let entry = |name| format!(r#"{{"name": "{name}", "key": "sk-{name}"}}"#);
            let list: Vec<_> = names.iter().map(entry).collect();
            let path = self.dir.join(file);
            fs::write(&path, format!("[{}]", list.join(","))).unwrap();
            path
        }
    }

    impl Drop for Stage {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    fn open_to(keys: &ClientKeys) -> Vec<&'static str> {
        let all = ["a", "b", "c"].into_iter();
        let found = |name: &&str| {
            let found = keys.find(format!("sk-{name}").as_bytes());
            found.is_some_and(|key| key.name == *name)
        };
        all.filter(found).collect()
    }

    #[test]
    fn keys_follow_the_file_when_it_is_written_renamed_or_a_link_is_swapped() {
        let stage = Stage::new("follow");
        let path = stage.write("keys.json", &["a"]);
        let keys = ClientKeys::open(&path, &stage.metrics, None).unwrap();
        assert_eq!(open_to(&keys), ["a"]);
        stage.write("keys.json", &["a", "b"]);
        keys.look();
        assert_eq!(open_to(&keys), ["a", "b"]);
        fs::rename(stage.write("next.json", &["c"]), &path).unwrap();
        keys.look();
        assert_eq!(open_to(&keys), ["c"]);
        // As Kubernetes does for mounted secrets.
        let (one, two) = (stage.write("1.json", &["a"]), stage.write("2.json", &["b"]));
        let (link, next) = (stage.dir.join("link"), stage.dir.join("next"));
        symlink(one, &link).unwrap();
        let keys = ClientKeys::open(&link, &stage.metrics, None).unwrap();
        symlink(two, &next).unwrap();
        fs::rename(&next, &link).unwrap();
        keys.look();
        assert_eq!(open_to(&keys), ["b"]);
    }

    #[test]
    fn broken_or_absent_file_keeps_the_last_good_one_and_is_counted_once() {
        let stage = Stage::new("broken");
        let path = stage.write("keys.json", &["a"]);
        let keys = ClientKeys::open(&path, &stage.metrics, None).unwrap();
        fs::write(&path, "[{").unwrap();
        keys.look();
        keys.look();
        fs::remove_file(&path).unwrap();
        keys.look();
        keys.look();
        assert_eq!(open_to(&keys), ["a"]);
        stage.write("keys.json", &["b"]);
        keys.look();
        assert_eq!(open_to(&keys), ["b"]);
        let page = stage.metrics.render().unwrap();
        for line in [
            "smg_api_keys_reloads_total{result=\"failure\"} 2\n",
            "smg_api_keys_reloads_total{result=\"success\"} 1\n",
        ] {
            assert!(page.contains(line), "{page}");
        }
    }

    #[test]
    fn what_was_taken_of_limits_that_stay_is_not_forgotten() {
        let stage = Stage::new("limits");
        let write = |rpm: u32, more: &str| {
            let path = stage.dir.join("keys.json");
            let entry = format!(r#"{{"name": "a", "key": "sk-a", "rpm_limit": {rpm}}}"#);
            fs::write(&path, format!("[{entry}{more}]")).unwrap();
            path
        };
        let path = write(1, "");
        let keys = ClientKeys::open(&path, &stage.metrics, None).unwrap();
        let enter = || keys.find(b"sk-a").unwrap().enter();
        assert!(enter().is_ok() && enter().is_err());
        write(1, r#", {"name": "b", "key": "sk-b"}"#);
        keys.look();
        assert!(enter().is_err());
        assert!(matches!(keys.find(b"sk-b").unwrap().enter(), Ok(None)));
        // One limit changes, and the other stays with what has been taken of it.
        let at_a_time =
            r#"[{"name": "a", "key": "sk-a", "rpm_limit": 60, "max_parallel_requests": 1}]"#;
        fs::write(&path, at_a_time).unwrap();
        keys.look();
        let held = enter().unwrap();
        assert!(enter().is_err());
        fs::write(&path, at_a_time.replace("60", "120")).unwrap();
        keys.look();
        assert!(enter().is_err());
        drop(held);
        assert!(enter().is_ok());
        write(60, "");
        keys.look();
        assert!(enter().is_ok());
        let page = stage.metrics.render().unwrap();
        let line = "smg_api_key_refused_total{key=\"a\",limit=\"rpm_limit\"} 2\n";
        assert!(page.contains(line), "{page}");
        fs::write(stage.dir.join("keys.json"), "[]").unwrap();
        keys.look();
        let page = stage.metrics.render().unwrap();
        assert!(!page.contains("smg_api_key_refused_total{"), "{page}");
    }

    #[test]
    fn series_are_bounded_and_go_with_their_keys() {
        let stage = Stage::new("series");
        let names: Vec<_> = (0..MAX_SERIES + 50).map(|at| format!("k{at}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let path = stage.write("keys.json", &names);
        let keys = ClientKeys::open(&path, &stage.metrics, None).unwrap();
        for name in &names {
            assert!(keys.find(format!("sk-{name}").as_bytes()).is_some());
        }
        let page = stage.metrics.render().unwrap();
        assert_eq!(
            page.matches("smg_api_key_requests_total{").count(),
            MAX_SERIES + 1
        );
        assert!(page.contains("smg_api_key_requests_total{key=\"other\"} 50\n"));
        stage.write("keys.json", &["k1"]);
        keys.look();
        let page = stage.metrics.render().unwrap();
        assert_eq!(page.matches("smg_api_key_requests_total{").count(), 1);
        // What was counted of a key that stays is kept.
        assert!(page.contains("smg_api_key_requests_total{key=\"k1\"} 1\n"));
    }

    #[test]
    fn file_that_is_absent_or_broken_at_first_is_an_error() {
        let stage = Stage::new("absent");
        let path = stage.dir.join("keys.json");
        assert!(ClientKeys::open(&path, &stage.metrics, None).is_err());
        fs::write(&path, "keys").unwrap();
        assert!(ClientKeys::open(&path, &stage.metrics, None).is_err());
    }
}
