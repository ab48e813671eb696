//! The pods that are known, by what the API server sends.

use std::collections::BTreeMap;

use kube::ResourceExt;
use kube::runtime::watcher::Event;

use super::pod::{Pod, PodObject};

/// Pods by uid.
#[derive(Debug, Default)]
pub(super) struct Pods {
    known: BTreeMap<String, Known>,
    /// The versions of those that have gone since the last list: an event may come twice.
    gone: BTreeMap<String, u64>,
    /// Those of a list that has begun: it replaces the others when it is complete.
    listing: Option<BTreeMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    /// Rises with every change.
    version: u64,
    pod: Pod,
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    Change,
    /// All pods, whether they have changed or not.
    List,
}

impl Pods {
    /// Takes in what the API server sends.
    pub(super) fn hear(&mut self, event: Event<PodObject>) -> Heard {
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                Heard::Nothing
            }
            Event::InitApply(object) => {
                let known = Known::from(object);
                let listing = self.listing.get_or_insert_default();
                listing.insert(known.pod.uid.clone(), known);
                Heard::Nothing
            }
            Event::InitDone => {
                self.known = self.listing.take().unwrap_or_default();
                self.gone.clear();
                Heard::List
            }
            Event::Apply(object) => self.apply(object.into()),
            Event::Delete(object) => self.delete(&object.into()),
        }
    }

    fn apply(&mut self, new: Known) -> Heard {
        let uid = &new.pod.uid;
        let known = self.known.get(uid);
        let version = known
            .map(|known| known.version)
            .or(self.gone.get(uid).copied());
        if version.is_some_and(|version| new.version < version) {
            return Heard::Nothing;
        }
        // Most changes of a pod's status are none to a worker.
        let same = known.is_some_and(|known| known.pod == new.pod);
        self.known.insert(uid.clone(), new);
        if same { Heard::Nothing } else { Heard::Change }
    }

    fn delete(&mut self, last: &Known) -> Heard {
        let uid = &last.pod.uid;
        if self
            .known
            .get(uid)
            .is_some_and(|known| last.version < known.version)
        {
            return Heard::Nothing;
        }
        self.gone.insert(uid.clone(), last.version);
        match self.known.remove(uid) {
            Some(_) => Heard::Change,
            None => Heard::Nothing,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Pod> + Clone {
        self.known.values().map(|known| &known.pod)
    }
}

impl From<PodObject> for Known {
    fn from(object: PodObject) -> Self {
        let version = object.resource_version();
        Self {
            // A number in every release; where it is not, no event counts as old.
            version: version
                .and_then(|version| version.parse().ok())
                .unwrap_or(0),
            pod: object.into(),
        }
    }
}
