//! Why the pods cannot be followed.

use std::error::Error as StdError;

use kube::Error;
use kube::core::Status;
use kube::runtime::watcher;

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

    /// What a watcher reports; `None` where it goes on by itself: it watches or lists again.
    pub(super) fn of_watcher(error: &watcher::Error, namespace: Option<&str>) -> Option<Self> {
        let asked = |verb| Asked { verb, namespace };
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

/// What was asked of the API server.
#[derive(Clone, Copy)]
struct Asked<'a> {
    verb: &'static str,
    namespace: Option<&'a str>,
}

impl Asked<'_> {
    fn failed(self, error: &Error) -> Trouble {
        if let Error::Api(status) = error {
            return self.refused(status);
        }
        let (reason, what) = match error {
            Error::SerdeError(_) => ("protocol", "sends what are no pods"),
            Error::Auth(_) => ("unauthenticated", "cannot be shown credentials"),
            _ => ("unreachable", "does not answer"),
        };
        let text = format!("the API server {what}: {}", chain(error));
        Trouble { reason, text }
    }

    fn refused(self, status: &Status) -> Trouble {
        let (verb, said) = (self.verb, &status.message);
        let (place, role) = match self.namespace {
            Some(name) => (format!("in namespace {name}"), "Role"),
            None => ("in all namespaces".to_owned(), "ClusterRole"),
        };
        let (reason, text) = match status.code {
            403 => (
                "denied",
                format!(
                    "may not {verb} pods {place}; the service account needs a {role} with the verbs get, list, watch on pods: {said}"
                ),
            ),
            401 => (
                "unauthenticated",
                format!("the API server does not accept the credentials for {verb} pods: {said}"),
            ),
            410 => ("expired", format!("{verb} pods {place}: {said}")),
            code => (
                "refused",
                format!("the API server refuses to {verb} pods {place}, {code}: {said}"),
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
