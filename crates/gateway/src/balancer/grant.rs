//! Which models a request may be served by, where its client's key has not all of them.

use std::borrow::Cow;
use std::collections::BTreeSet;

use routing::Request;

use super::model_names::Resolved;
use super::snapshot::{Snapshot, Target};
use crate::fleet::Role;

/// What a client may use, and which adapters its request asks for.
#[derive(Clone, Debug)]
pub(crate) struct Grant<'a> {
    /// Models, other names of models, and adapters: `adapter` or `model:adapter`.
    pub(crate) names: &'a BTreeSet<String>,
    pub(crate) adapters: NamedAdapters<'a>,
}

/// The adapters that a body names beside its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NamedAdapters<'a> {
    These(Vec<Cow<'a, str>>),
    /// There may be some that cannot be read.
    Unreadable,
}

impl Default for NamedAdapters<'_> {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl Grant<'_> {
    /// Whether the client may use every model that might serve its request, and every adapter.
    pub(super) fn allows(
        &self,
        snapshot: &Snapshot,
        request: &Request<'_>,
        target: Option<&Target>,
    ) -> bool {
        let NamedAdapters::These(beside) = &self.adapters else {
            return false;
        };
        let names = &snapshot.names;
        let models = models(snapshot, request, target);
        let in_model = request.model.map(|name| names.adapters_in(name));
        let beside = beside.iter().map(|name| &**name);
        let mut adapters = beside.chain(in_model.unwrap_or_default());
        let mut all = models.iter();
        all.all(|model| names.allows_model(self.names, model))
            && adapters.all(|name| names.allows_adapter(self.names, name, &models))
    }
}

/// Every model that might serve a request.
fn models(snapshot: &Snapshot, request: &Request<'_>, target: Option<&Target>) -> BTreeSet<String> {
    let resolved = snapshot.names.resolve(request.model, request.adapter);
    let mut found = BTreeSet::new();
    let resolved = match target {
        Some(Some((_, candidates))) => {
            for candidate in candidates {
                let worker = snapshot.worker(candidate.slot);
                found.extend(worker.map(|worker| worker.endpoint.model_info.load().model.clone()));
            }
            if !snapshot.has_pairs {
                return found;
            }
            // The worker's partner is of the request's model, or of any.
            match resolved {
                Resolved::Missing | Resolved::Unknown => Resolved::Any,
                resolved => resolved,
            }
        }
        Some(None) | None => resolved,
    };
    match resolved {
        Resolved::Model(model) | Resolved::Adapter { model, .. } => {
            found.insert(model.to_owned());
        }
        Resolved::Any | Resolved::Missing | Resolved::Unknown => {}
    }
    for role in Role::ALL {
        let pool = snapshot.of(role).pool(resolved);
        found.extend(
            pool.into_iter()
                .flat_map(|pool| pool.models.iter().cloned()),
        );
    }
    found
}
