//! The pods that are known, by what the API server sends.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

use super::endpoint_slice::pods_of;
use super::pod::{Pod, PodObject};

/// An object of the API server, read.
#[derive(Debug)]
pub(super) struct Known {
    uid: String,
    /// Rises with every change.
    version: u64,
    /// The pods that it stands for. The same ones for as long as nothing of them changes.
    pods: Vec<Arc<Pod>>,
}

/// What the API server sends.
#[derive(Debug)]
pub(super) enum Update {
    /// A list begins.
    Begin,
    /// Of the list.
    Listed(Known),
    /// The list is complete.
    Complete,
    Applied(Known),
    Deleted(Known),
}

/// Pods by the uid of the object that stands for them.
#[derive(Debug, Default)]
pub(super) struct Pods {
    known: BTreeMap<String, Known>,
    /// The versions of those that have gone since the last list: an event may come twice.
    gone: BTreeMap<String, u64>,
    /// Those of a list that has begun: it replaces the others when it is complete.
    listing: Option<BTreeMap<String, Known>>,
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
    pub(super) fn hear(&mut self, update: Update) -> Heard {
        match update {
            Update::Begin => {
                self.listing = Some(BTreeMap::new());
                Heard::Nothing
            }
            Update::Listed(known) => {
                let listing = self.listing.get_or_insert_default();
                listing.insert(known.uid.clone(), known);
                Heard::Nothing
            }
            Update::Complete => {
                let mut before = std::mem::take(&mut self.known);
                self.known = self.listing.take().unwrap_or_default();
                for (uid, known) in &mut self.known {
                    if let Some(before) = before.remove(uid) {
                        known.keep(before.pods);
                    }
                }
                self.gone.clear();
                Heard::List
            }
            Update::Applied(new) => self.apply(new),
            Update::Deleted(last) => self.delete(&last),
        }
    }

    fn apply(&mut self, mut new: Known) -> Heard {
        let uid = &new.uid;
        let known = self.known.get(uid);
        let version = known
            .map(|known| known.version)
            .or(self.gone.get(uid).copied());
        if version.is_some_and(|version| new.version < version) {
            return Heard::Nothing;
        }
        // Most changes of a pod's status are none to a worker.
        let before = known.map(|known| known.pods.clone());
        let same = before.is_some_and(|before| new.keep(before));
        self.known.insert(new.uid.clone(), new);
        if same { Heard::Nothing } else { Heard::Change }
    }

    fn delete(&mut self, last: &Known) -> Heard {
        let uid = &last.uid;
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

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Pod>> + Clone {
        self.known.values().flat_map(|known| &known.pods)
    }
}

impl Known {
    /// `version` is a number in every release; where it is not, no event counts as old.
    fn new(uid: Option<String>, version: Option<&str>, pods: Vec<Pod>) -> Self {
        let version = version.and_then(|version| version.parse().ok());
        Self {
            uid: uid.unwrap_or_default(),
            version: version.unwrap_or(0),
            pods: pods.into_iter().map(Arc::new).collect(),
        }
    }

    /// Takes the pods as they were if they are the same; returns whether they are.
    fn keep(&mut self, before: Vec<Arc<Pod>>) -> bool {
        let same = self.pods == before;
        if same {
            self.pods = before;
        }
        same
    }
}

impl From<PodObject> for Known {
    fn from(object: PodObject) -> Self {
        let (uid, version) = (object.uid(), object.resource_version());
        Self::new(uid, version.as_deref(), vec![object.into()])
    }
}

impl From<EndpointSlice> for Known {
    fn from(slice: EndpointSlice) -> Self {
        let (uid, version) = (slice.uid(), slice.resource_version());
        Self::new(uid, version.as_deref(), pods_of(slice))
    }
}

impl<K: Into<Known>> From<Event<K>> for Update {
    fn from(event: Event<K>) -> Self {
        match event {
            Event::Init => Self::Begin,
            Event::InitApply(object) => Self::Listed(object.into()),
            Event::InitDone => Self::Complete,
            Event::Apply(object) => Self::Applied(object.into()),
            Event::Delete(object) => Self::Deleted(object.into()),
        }
    }
}
