//! Which workers there should be: what each source lists, and what clients have registered and
//! removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use uuid::Uuid;

use super::source::Source;
use super::spec::WorkerSpec;
use crate::config::WorkerUrl;

/// A worker in the list of a source. A clone is cheap, and so is a comparison with it: lists are
/// long, and hardly differ from one to the next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listed {
    pub(crate) spec: Arc<WorkerSpec>,
    /// What it is apart from its URL: another one at the same URL is another worker.
    pub(crate) identity: Option<Arc<str>>,
    /// Whether it may be given requests. One that may not stays if it is known, and is not added
    /// if it is not.
    pub(crate) ready: bool,
}

impl From<WorkerSpec> for Listed {
    fn from(spec: WorkerSpec) -> Self {
        Self {
            spec: spec.into(),
            identity: None,
            ready: true,
        }
    }
}

/// A URL that a source names.
#[derive(Debug)]
struct Claim {
    by: ClaimedBy,
    /// The worker has been removed by request, and its source has listed it ever since.
    withdrawn: bool,
}

#[derive(Debug)]
enum ClaimedBy {
    List(Listed),
    /// A client: the spec is that of the worker.
    Request(WorkerUrl),
}

/// What all sources claim, in the order of their precedence.
#[derive(Debug, Default)]
pub(super) struct Claims {
    of: BTreeMap<Source, Vec<Claim>>,
}

/// A worker as the registry has it.
#[derive(Debug)]
pub(super) struct Registered<'a> {
    pub(super) id: Uuid,
    pub(super) url: &'a WorkerUrl,
    pub(super) source: Source,
    pub(super) listed: Option<&'a Listed>,
}

/// What is to be done so that the registered workers are those that are claimed.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    Add(Source, Listed),
    /// The worker stays; another source has it now, or its source says something else of it.
    Follow {
        id: Uuid,
        source: Source,
        listed: Option<Listed>,
    },
    Remove(Uuid),
}

impl Claims {
    /// A source lists these workers, and no others. What was removed by request stays so until
    /// its source has left it out once, or lists another worker at its URL.
    pub(super) fn list(&mut self, source: Source, list: &[Listed]) {
        let before = self.of.remove(&source).unwrap_or_default();
        let removed = before.iter().filter(|claim| claim.withdrawn);
        let mut removed: HashMap<_, Vec<_>> = removed.fold(HashMap::new(), |mut at, claim| {
            let identities: &mut Vec<_> = at.entry(claim.url()).or_default();
            identities.push(claim.identity());
            at
        });
        let claims = list.iter().map(|listed| {
            let identity = listed.identity.as_ref();
            let identities = removed.get_mut(&listed.spec.url);
            let found = identities.and_then(|all| {
                let at = all.iter().position(|removed| *removed == identity)?;
                Some(all.swap_remove(at))
            });
            Claim {
                by: ClaimedBy::List(listed.clone()),
                withdrawn: found.is_some(),
            }
        });
        let claims = claims.collect();
        self.of.insert(source, claims);
    }

    /// What a source lists.
    pub(super) fn listed(&self, source: Source) -> Vec<Listed> {
        let claims = self.of.get(&source).into_iter().flatten();
        claims.filter_map(|claim| claim.listed().cloned()).collect()
    }

    /// A client registers a worker.
    pub(super) fn request(&mut self, url: &WorkerUrl) {
        let requested = self.of.entry(Source::API).or_default();
        if !requested.iter().any(|claim| claim.url() == url) {
            requested.push(Claim {
                by: ClaimedBy::Request(url.clone()),
                withdrawn: false,
            });
        }
    }

    /// Its registration is undone; what sources list stays.
    pub(super) fn release(&mut self, url: &WorkerUrl) {
        let requested = self.of.entry(Source::API).or_default();
        requested.retain(|claim| claim.url() != url);
    }

    /// A worker is removed by request: no source has it any longer.
    pub(super) fn withdraw(&mut self, url: &WorkerUrl) {
        self.release(url);
        for claims in self.of.values_mut() {
            // A list may name a URL twice, for two workers.
            let mut claims = claims.iter_mut();
            let claim = claims.find(|claim| claim.url() == url && !claim.withdrawn);
            if let Some(claim) = claim {
                claim.withdrawn = true;
            }
        }
    }

    /// The claims that count: of each URL those of the first source that has it.
    fn wanted(&self) -> impl Iterator<Item = (Source, &Claim)> {
        let count = self.of.values().map(Vec::len).sum();
        let mut owners: HashMap<&WorkerUrl, Source> = HashMap::with_capacity(count);
        let mut discovered = HashSet::with_capacity(count);
        let claims = self
            .of
            .iter()
            .flat_map(|(source, claims)| claims.iter().map(|claim| (*source, claim)));
        claims.filter(move |(source, claim)| {
            !claim.withdrawn
                && *owners.entry(claim.url()).or_insert(*source) == *source
                // Only the options mean two workers by a URL that they name twice.
                && (*source == Source::CONFIGURED || discovered.insert(claim.url()))
        })
    }

    /// What is to be done where these are registered, in the order of their registration.
    pub(super) fn changes(&self, registered: &[Registered<'_>]) -> Vec<Change> {
        let mut unclaimed = Unclaimed::new(registered);
        let mut changes = Vec::new();
        for (source, claim) in self.wanted() {
            if let Some(worker) = unclaimed.take(claim) {
                let listed = claim.listed();
                if (worker.source, worker.listed) != (source, listed) {
                    changes.push(Change::Follow {
                        id: worker.id,
                        source,
                        listed: listed.cloned(),
                    });
                }
            } else if let Some(listed) = claim.listed().filter(|listed| listed.ready) {
                changes.push(Change::Add(source, listed.clone()));
            }
        }
        changes.extend(unclaimed.rest().map(|worker| Change::Remove(worker.id)));
        changes
    }
}

/// Registered workers that no claim is for, as far as claims have been looked at.
struct Unclaimed<'a> {
    registered: &'a [Registered<'a>],
    /// The places of the first worker of each URL.
    first: HashMap<&'a WorkerUrl, usize>,
    /// For each worker, the place of the next one of its URL.
    next: Vec<Option<usize>>,
    claimed: Vec<bool>,
}

impl<'a> Unclaimed<'a> {
    fn new(registered: &'a [Registered<'a>]) -> Self {
        let mut first = HashMap::with_capacity(registered.len());
        let mut next = vec![None; registered.len()];
        for (at, worker) in registered.iter().enumerate().rev() {
            next[at] = first.insert(worker.url, at);
        }
        Self {
            registered,
            first,
            next,
            claimed: vec![false; registered.len()],
        }
    }

    /// The first worker at a claim's URL, if it may be the claimed one.
    fn take(&mut self, claim: &Claim) -> Option<&'a Registered<'a>> {
        let first = self.first.get_mut(claim.url())?;
        let at = *first;
        let worker = self.registered.get(at);
        let worker = worker.filter(|worker| !self.claimed[at] && claim.is_of(worker))?;
        self.claimed[at] = true;
        *first = self.next[at].unwrap_or(at);
        Some(worker)
    }

    /// Those that are left, in the order of their registration.
    fn rest(self) -> impl Iterator<Item = &'a Registered<'a>> {
        let all = self.registered.iter().zip(self.claimed);
        all.filter_map(|(worker, claimed)| (!claimed).then_some(worker))
    }
}

impl Claim {
    fn url(&self) -> &WorkerUrl {
        match &self.by {
            ClaimedBy::List(listed) => &listed.spec.url,
            ClaimedBy::Request(url) => url,
        }
    }

    fn listed(&self) -> Option<&Listed> {
        match &self.by {
            ClaimedBy::List(listed) => Some(listed),
            ClaimedBy::Request(_) => None,
        }
    }

    fn identity(&self) -> Option<&Arc<str>> {
        self.listed()?.identity.as_ref()
    }

    /// Whether the worker may be the claimed one: nothing says that it is another.
    fn is_of(&self, worker: &Registered<'_>) -> bool {
        let known = worker.listed.and_then(|listed| listed.identity.as_ref());
        let claimed = self.identity();
        known.is_none() || claimed.is_none() || known == claimed
    }
}
