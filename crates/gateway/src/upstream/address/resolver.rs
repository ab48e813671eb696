//! The hosts of all workers, one [`Host`] each.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::runtime::Handle;

use super::host::Host;
use super::lookups::{LookupFuture, Lookups, system};

/// Finds the addresses of hosts; a clone shares them.
#[derive(Clone, Debug)]
pub(crate) struct Resolver {
    hosts: Arc<Mutex<HashMap<String, Weak<Host>>>>,
    lookups: Arc<Lookups>,
}

impl Resolver {
    /// A resolver whose look-ups run on `runtime`.
    pub(crate) fn new(runtime: Handle) -> Self {
        Self::with(Some(runtime), system)
    }

    /// A resolver that looks names up in this way.
    pub(super) fn with<L>(runtime: Option<Handle>, lookup: L) -> Self
    where
        L: Fn(String) -> LookupFuture + Send + Sync + 'static,
    {
        Self {
            hosts: Arc::default(),
            lookups: Arc::new(Lookups::new(runtime, Box::new(lookup))),
        }
    }

    /// The host of this name, shared by all that use it.
    pub(in crate::upstream) fn host(&self, name: &str) -> Arc<Host> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = hosts.get(name).and_then(Weak::upgrade) {
            return host;
        }
        hosts.retain(|_, host| host.strong_count() > 0);
        let host = Arc::new(Host::new(name.to_owned(), Arc::clone(&self.lookups)));
        hosts.insert(name.to_owned(), Arc::downgrade(&host));
        host
    }
}

impl Resolver {
    /// The addresses of a host, in the form in which reqwest takes them.
    pub(in crate::upstream) fn addresses(&self, name: &str) -> Resolving {
        let host = self.host(name);
        Box::pin(async move {
            let found = host.addresses().await?;
            let found = found.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(found) as Addrs)
        })
    }
}

impl Default for Resolver {
    /// A resolver whose look-ups run on the caller's runtime.
    fn default() -> Self {
        Self::with(None, system)
    }
}

/// For the gateway's own calls.
impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        self.addresses(name.as_str())
    }
}
