//! Look-ups of names by the system (`getaddrinfo`), so /etc/hosts, search domains and
//! nsswitch.conf hold. They block, so they run on the control thread's pool and never on a lane.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::lookup_host;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Look-ups at a time: each holds a thread for as long as the system takes.
const MAX_LOOKUPS: usize = 16;

pub(super) type Lookup = dyn Fn(String) -> LookupFuture + Send + Sync;
pub(super) type LookupFuture = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// How names are looked up, and where.
pub(super) struct Lookups {
    /// The control thread's; the caller's where there is none.
    runtime: Option<Handle>,
    places: Semaphore,
    lookup: Box<Lookup>,
}

impl Lookups {
    pub(super) fn new(runtime: Option<Handle>, lookup: Box<Lookup>) -> Self {
        Self {
            runtime,
            places: Semaphore::new(MAX_LOOKUPS),
            lookup,
        }
    }

    /// Starts a look-up; `apply` gets what comes of it.
    pub(super) fn start<F>(self: &Arc<Self>, name: String, apply: F)
    where
        F: FnOnce(io::Result<Vec<IpAddr>>) + Send + 'static,
    {
        let lookups = Arc::clone(self);
        let look_up = async move {
            // Never closed.
            let place = lookups.places.acquire().await;
            apply((lookups.lookup)(name).await);
            drop(place);
        };
        match &self.runtime {
            Some(runtime) => runtime.spawn(look_up),
            None => tokio::spawn(look_up),
        };
    }
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups").finish_non_exhaustive()
    }
}

pub(super) fn system(name: String) -> LookupFuture {
    Box::pin(async move {
        let found = lookup_host((name, 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    })
}
