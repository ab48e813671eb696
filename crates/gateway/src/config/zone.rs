//! The zone of the gateway, and those of the workers that options name.

use std::sync::Arc;

use super::configured_worker::configured_workers;
use super::error::ConfigError;
use super::options::Options;
use super::worker_name::WorkerName;
use super::worker_url::WorkerUrl;

/// Longest name of a zone: that of a label's value in Kubernetes.
const MAX_NAME: usize = 63;
/// The most that a crossing may cost, tokens.
const MAX_COST: u64 = 1_000_000_000;
const IS_NO_ZONE: &str = "must be a name of 1 to 63 letters, digits, hyphens, dots or underscores";

/// Where the gateway is, and what it costs to leave that zone.
#[derive(Clone, Debug, Default)]
pub(crate) struct ZoneSection {
    /// The gateway's own zone.
    pub(crate) own: Option<Arc<str>>,
    /// Price of a crossing, in tokens of prefill.
    pub(crate) crossing_tokens: u64,
}

impl From<&Options> for ZoneSection {
    fn from(options: &Options) -> Self {
        Self {
            own: options.zone.as_deref().map(Arc::from),
            crossing_tokens: options.zone_crossing_cost,
        }
    }
}

impl ZoneSection {
    /// What it costs to get from one zone to another. A worker without a zone is near to all.
    pub(crate) fn price(&self, from: Option<&str>, to: Option<&str>) -> u64 {
        match (from, to) {
            (Some(from), Some(to)) if from != to => self.crossing_tokens,
            _ => 0,
        }
    }
}

/// Whether a zone may be called so.
pub(crate) fn is_zone(name: &str) -> bool {
    let may = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(may)
}

/// The zone that `worker_zones` has for a worker of the options, as that writes its URL or name.
pub(crate) fn configured_zone(options: &Options, worker: &str) -> Option<String> {
    let mut zones = options.worker_zones.iter();
    let found = zones.find(|(named, _)| is_same(named, worker));
    found.map(|(_, zone)| zone.clone())
}

/// Whether two spellings name one worker.
fn is_same(one: &str, other: &str) -> bool {
    if WorkerName::parse(one).is_some() || WorkerName::parse(other).is_some() {
        return one == other;
    }
    match (WorkerUrl::parse(one), WorkerUrl::parse(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// Checks the names of zones, and that each worker with one is a worker of the options.
pub(super) fn check_zones(options: &Options) -> Result<(), ConfigError> {
    if let Some(zone) = options.zone.as_deref().filter(|zone| !is_zone(zone)) {
        return Err(ConfigError::invalid(
            "zone",
            format!("{zone:?}"),
            IS_NO_ZONE,
        ));
    }
    if !(1..=MAX_COST).contains(&options.zone_crossing_cost) {
        let why = format!("must be from 1 to {MAX_COST} tokens");
        let cost = options.zone_crossing_cost;
        return Err(ConfigError::invalid("zone_crossing_cost", cost, why));
    }
    if options.service_discovery_zone_label.is_empty() {
        let why = "must be the key of a pod label";
        return Err(ConfigError::invalid(
            "service_discovery_zone_label",
            "\"\"",
            why,
        ));
    }
    for (worker, zone) in &options.worker_zones {
        let invalid = |value: &str, why| {
            Err(ConfigError::invalid(
                "worker_zones",
                WorkerUrl::quote(value),
                why,
            ))
        };
        if !is_zone(zone) {
            return invalid(zone, IS_NO_ZONE);
        }
        if !configured_workers(options).any(|known| is_same(known.text, worker)) {
            return invalid(worker, "is no worker of the options");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(zones: &[(&str, &str)]) -> Options {
        let zones = zones
            .iter()
            .map(|(worker, zone)| ((*worker).to_owned(), (*zone).to_owned()));
        Options {
            worker_urls: vec!["http://a:1".into(), "dns+http://pool:2".into()],
            worker_zones: zones.collect(),
            ..Options::default()
        }
    }

    #[test]
    fn zone_of_a_worker_is_found_by_any_spelling_of_its_url() {
        let options = options(&[("a:1/", "east"), ("dns+http://pool:2", "west")]);
        check_zones(&options).unwrap();
        let zone = |worker| configured_zone(&options, worker);
        assert_eq!(zone("http://a:1").as_deref(), Some("east"));
        assert_eq!(zone("dns+http://pool:2").as_deref(), Some("west"));
        assert_eq!(zone("http://b:1"), None);
    }

    #[test]
    fn wrong_zones_are_refused_by_name() {
        let error = |options: &Options| check_zones(options).unwrap_err().to_string();
        for zones in [
            ("http://a:1", ""),
            ("http://a:1", "a b"),
            ("http://c:1", "x"),
        ] {
            assert!(
                error(&options(&[zones])).contains("'worker_zones'"),
                "{zones:?}"
            );
        }
        let long = "z".repeat(64);
        for zone in ["", "a/b", "ü", &long] {
            let options = Options {
                zone: Some(zone.to_owned()),
                ..Options::default()
            };
            assert!(error(&options).contains("'zone'"), "{zone}");
        }
        let free = Options {
            zone_crossing_cost: 0,
            ..Options::default()
        };
        assert!(error(&free).contains("'zone_crossing_cost'"));
        let unnamed = Options {
            service_discovery_zone_label: String::new(),
            ..Options::default()
        };
        assert!(error(&unnamed).contains("'service_discovery_zone_label'"));
    }

    #[test]
    fn only_different_known_zones_are_a_crossing_apart() {
        let zones = ZoneSection {
            own: Some("a".into()),
            crossing_tokens: 7,
        };
        assert_eq!(zones.price(Some("a"), Some("b")), 7);
        assert_eq!(zones.price(Some("a"), Some("a")), 0);
        assert_eq!(zones.price(None, Some("b")), 0);
        assert_eq!(zones.price(Some("a"), None), 0);
    }
}
