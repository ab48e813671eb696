//! What is watched, and why it cannot be.

use std::error::Error as StdError;

use kube::Error;
use kube::core::Status;
use kube::runtime::watcher;

use super::rules::Namespace;
use crate::config::DiscoveryBy;

/// Why the pods cannot be followed at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// For metrics and `/readiness`.
    pub(super) reason: &'static str,
    /// For the log.
    pub(super) text: String,
}

impl Trouble {
    /// No cluster is configured, or it is configured wrongly.
    pub(super) fn no_cluster(error: &dyn StdError) -> Self {
        Self {
            reason: "no_cluster",
            text: format!("knows no cluster to look for pods in: {}", chain(error)),
        }
    }

    /// What a watcher of `target` reports; `None` where it goes on by itself: it watches or lists
    /// again.
    pub(super) fn of_watcher(error: &watcher::Error, target: &Target) -> Option<Self> {
        let asked = |verb| Asked { verb, target };
        match error {
            watcher::Error::InitialListFailed(error) => Some(asked("list").failed(error)),
            watcher::Error::WatchStartFailed(error) => Some(asked("watch").failed(error)),
            watcher::Error::WatchError(status) if status.code == 410 => None,
            watcher::Error::WatchError(status) => Some(asked("watch").refused(status)),
            // That event is lost.
            watcher::Error::WatchFailed(error @ Error::SerdeError(_)) => {
                Some(asked("watch").failed(error))
            }
            // A connection has been cut, which proxies do to long ones.
            watcher::Error::WatchFailed(_) => None,
            watcher::Error::NoResourceVersion => Some(Self {
                reason: "protocol",
                text: error.to_string(),
            }),
        }
    }
}

/// What is watched.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) by: DiscoveryBy,
    pub(super) namespace: Namespace,
}

impl Target {
    /// As rules of access name it.
    fn resource(&self) -> &'static str {
        match self.by {
            DiscoveryBy::Pods => "pods",
            DiscoveryBy::EndpointSlices => "endpointslices",
        }
    }
}

/// What was asked of the API server.
#[derive(Clone, Copy)]
struct Asked<'a> {
    verb: &'static str,
    target: &'a Target,
}

impl Asked<'_> {
    fn failed(self, error: &Error) -> Trouble {
        if let Error::Api(status) = error {
            return self.refused(status);
        }
        let (reason, what) = match error {
            Error::SerdeError(_) => {
                let what = format!("sends what are no {}", self.target.resource());
                ("protocol", what)
            }
            Error::Auth(_) => ("unauthenticated", "cannot be shown credentials".to_owned()),
            _ => ("unreachable", "does not answer".to_owned()),
        };
        let text = format!("the API server {what}: {}", chain(error));
        Trouble { reason, text }
    }

    fn refused(self, status: &Status) -> Trouble {
        let (verb, said) = (self.verb, &status.message);
        let resource = self.target.resource();
        let group = match self.target.by {
            DiscoveryBy::Pods => "",
            DiscoveryBy::EndpointSlices => " of discovery.k8s.io",
        };
        let place = format!("in {}", self.target.namespace);
        let role = match self.target.namespace.0 {
            Some(_) => "Role",
            None => "ClusterRole",
        };
        let (reason, text) = match status.code {
            403 => (
                "denied",
                format!(
                    "may not {verb} {resource} {place}; the service account needs a {role} with the verbs get, list, watch on {resource}{group}: {said}"
                ),
            ),
            401 => (
                "unauthenticated",
                format!(
                    "the API server does not accept the credentials for {verb} {resource}: {said}"
                ),
            ),
            410 => ("expired", format!("{verb} {resource} {place}: {said}")),
            code => (
                "refused",
                format!("the API server refuses to {verb} {resource} {place}, {code}: {said}"),
            ),
        };
        Trouble { reason, text }
    }
}

/// An error and what caused it, each said once.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}
