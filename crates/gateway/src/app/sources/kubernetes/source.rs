//! The source, and how it reaches the API server.

use std::time::Duration;

use kube::{Client, Config};

use super::follow::{Follower, SOURCE};
use super::rules::Rules;
use super::trouble::Trouble;
use super::watch::Timing;
use crate::app::error::StartError;
use crate::app::sources::source::{Follow, WorkerSource};
use crate::config::{DiscoverySection, Options};
use crate::fleet::Source;

/// Longest time to connect to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Pods that the selectors match.
pub(in crate::app::sources) struct Kubernetes;

impl WorkerSource for Kubernetes {
    const SOURCE: Source = SOURCE;
    const OPTIONS: &'static [&'static str] = &[
        "api_key",
        "bootstrap_port_annotation",
        "decode_selector",
        "model_id_from",
        "prefill_selector",
        "selector",
        "service_discovery",
        "service_discovery_by",
        "service_discovery_groups",
        "service_discovery_namespace",
        "service_discovery_port",
        "service_discovery_port_name",
        "service_discovery_zone_label",
    ];

    fn prepare(options: &Options) -> Result<Option<Follow>, StartError> {
        if !options.service_discovery {
            return Ok(None);
        }
        let rules = Rules {
            options: DiscoverySection::from(options),
        };
        let timing = Timing::default();
        Ok(Some(Box::new(move |registry| {
            let follower = Follower::new(rules, registry, timing);
            let following = follower.run(move || connect(timing));
            Ok(Some(tokio::spawn(following)))
        })))
    }
}

/// A client of the cluster that a kubeconfig names, or else of the one that the gateway runs in.
async fn connect(timing: Timing) -> Result<Client, Trouble> {
    let config = Config::infer().await;
    let mut config = config.map_err(|error| Trouble::no_cluster(&error))?;
    // A proxy of the environment is one for other traffic.
    let proxies = ["HTTPS_PROXY", "https_proxy"].map(|name| std::env::var(name).ok());
    let is_set = |proxy: String| proxy.parse().ok() == config.proxy_url;
    if config.proxy_url.is_some() && proxies.into_iter().flatten().any(is_set) {
        config.proxy_url = None;
    }
    client(config, timing)
}

pub(super) fn client(mut config: Config, timing: Timing) -> Result<Client, Trouble> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Also of a list that does not come; a watch may be silent for its whole time.
    config.read_timeout = Some(timing.longest_silence());
    config.reset_reader_on_write = true;
    // Trouble is reported, and then the list is asked for again.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| Trouble::no_cluster(&error))
}
