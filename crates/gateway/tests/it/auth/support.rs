//! Credentials, and places for files.

use std::fs;
use std::path::{Path, PathBuf};

use gateway::Options;
use serde_json::{Value, json};

use crate::support::options;

/// A directory of one test, gone at its end.
pub(super) struct TempDir(PathBuf);

impl TempDir {
    pub(super) fn new(name: &str) -> Self {
        let dir = format!("smg-auth-{name}-{}", uuid::Uuid::new_v4());
        let dir = std::env::temp_dir().join(dir);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    /// A file of keys with these names, which are the keys, too.
    pub(super) fn write_keys(&self, file: &str, names: &[&str]) -> String {
        let entries = names.iter().map(|name| json!({"name": name, "key": name}));
        let path = self.path(file);
        fs::write(&path, entries.collect::<Value>().to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Options of a gateway without workers, with keys `boss` (admin) and `guest` (user) for its
/// control plane.
pub(super) fn with_control_keys() -> Options {
    let keys = json!([
        {"id": "ops", "name": "Operations", "key": "boss", "role": "admin"},
        {"id": "eye", "name": "Dashboard", "key": "guest", "role": "user"},
    ]);
    let auth = json!({"jwt": null, "api_keys": keys, "audit_enabled": false});
    Options {
        control_plane_auth: serde_json::from_value(auth).unwrap(),
        ..options(&[])
    }
}

/// The same with an audit log.
pub(super) fn with_audit(path: &Path) -> Options {
    Options {
        audit_log: Some(path.to_str().unwrap().to_owned()),
        ..with_control_keys()
    }
}

/// The header line of a key.
pub(super) fn bearer(key: &str) -> String {
    format!("authorization: Bearer {key}\r\n")
}
