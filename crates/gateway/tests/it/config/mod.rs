//! A configuration file, and what changes while the gateway runs.

mod model;
mod reload;

use std::fs;
use std::path::PathBuf;

use gateway::Options;
use routing::PolicyKind;
use serde_json::Value;

use crate::support::{Reply, Running, get, options, post, start_with};

/// A configuration file that is removed at the end.
pub(crate) struct ConfigFile(PathBuf);

impl ConfigFile {
    fn new(name: &str, text: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("smg-conf-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = Self(dir.join("gateway.yaml"));
        file.replace(text);
        file
    }

    /// By a new file in its place, as editors and volumes of Kubernetes do.
    fn replace(&self, text: &str) {
        let next = self.0.with_extension("next");
        fs::write(&next, text).unwrap();
        fs::rename(next, &self.0).unwrap();
    }

    /// The path of another file beside it.
    fn beside(&self, name: &str) -> String {
        let path = self.0.with_file_name(name);
        path.to_str().unwrap().to_owned()
    }

    /// Options of a gateway on free ports that leave the rest to the file.
    fn options(&self) -> Options {
        Options {
            config: Some(self.0.to_str().unwrap().to_owned()),
            policy: PolicyKind::CacheAware,
            ..options(&[])
        }
    }

    async fn start(&self) -> Running {
        start_with(self.options()).await
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().unwrap());
    }
}

async fn reload(gateway: &Running) -> Reply {
    post(gateway, "/reload", "").await
}

/// The options that a reload says have changed.
async fn changed(gateway: &Running) -> Value {
    let reply = reload(gateway).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["changed"].clone()
}

/// The value of an option in force.
async fn in_force(gateway: &Running, name: &str) -> Value {
    get(gateway, "/debug/config").await.json()["options"][name]["value"].clone()
}
