//! A configuration file, and what changes while the gateway runs.

mod model;
mod reload;

use gateway::Options;
use routing::PolicyKind;
use serde_json::Value;

use crate::support::{Reply, Running, WatchedFile, get, options, post, start_with};

/// A configuration file that is removed at the end.
pub(crate) struct ConfigFile(WatchedFile);

impl ConfigFile {
    fn new(name: &str, text: &str) -> Self {
        Self(WatchedFile::new(
            &format!("conf-{name}"),
            "gateway.yaml",
            text,
        ))
    }

    fn replace(&self, text: &str) {
        self.0.replace(text);
    }

    fn beside(&self, name: &str) -> String {
        self.0.beside(name)
    }

    /// Options of a gateway on free ports that leave the rest to the file.
    fn options(&self) -> Options {
        Options {
            config: Some(self.0.path()),
            policy: PolicyKind::CacheAware,
            ..options(&[])
        }
    }

    async fn start(&self) -> Running {
        start_with(self.options()).await
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
