//! reqwest's clients: one for workers without TLS, others that trust `https://` workers.

use std::io;
use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{self, HeaderMap};
use lru::LruCache;
use reqwest::Client;
use reqwest::dns::{Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use rustls::ClientConfig;
use rustls::pki_types::DnsName;

use super::address::Resolver;
use super::error::UpstreamError;
use super::tls::{Configs, WorkerTls, trusts_none};
use crate::config::{ConnectionSection, Scheme, WorkerUrl};
use crate::via::Via;

/// Workers with a name of their own whose clients are kept.
const MAX_NAMED: NonZero<usize> = NonZero::new(1024).unwrap();

/// Two clients that differ in one thing.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    pub(super) pooled: Client,
    /// For calls that must not be repeated: each has a connection of its own, so that none is
    /// lost with one that died while it was kept.
    pub(super) unpooled: Client,
}

/// Makes clients.
#[derive(Clone, Debug)]
pub(super) struct ClientMaker {
    options: ConnectionSection,
    headers: HeaderMap,
}

impl ClientMaker {
    pub(super) fn new(options: &ConnectionSection, via: &Via) -> Self {
        Self {
            options: options.clone(),
            headers: HeaderMap::from_iter([(header::VIA, via.line().clone())]),
        }
    }

    /// Clients for workers without TLS.
    pub(super) fn plain(&self, resolver: &Resolver) -> io::Result<Clients> {
        // Without one, reqwest looks for a provider of the process, which there is none of.
        let tls = trusts_none().map_err(io::Error::other)?;
        self.make(resolver, &tls)
    }

    fn make<R>(&self, resolver: &R, tls: &ClientConfig) -> io::Result<Clients>
    where
        R: Resolve + Clone + 'static,
    {
        let options = &self.options;
        let keepalive: Duration = options.tcp_keepalive;
        let builder = |max_idle| {
            Client::builder()
                .no_proxy()
                .redirect(Policy::none())
                .http1_only()
                .connect_timeout(options.connect_timeout)
                .pool_idle_timeout(options.control_idle_timeout)
                .pool_max_idle_per_host(max_idle)
                .tcp_keepalive(keepalive)
                .tcp_keepalive_interval(keepalive)
                .dns_resolver(resolver.clone())
                .default_headers(self.headers.clone())
                .tls_backend_preconfigured(tls.clone())
                .build()
                .map_err(io::Error::other)
        };
        Ok(Clients {
            pooled: builder(options.max_idle_per_host)?,
            unpooled: builder(0)?,
        })
    }
}

/// Clients for `https://` workers, made anew when files of certificates have changed.
#[derive(Clone, Debug)]
pub(super) struct SecureClients {
    maker: ClientMaker,
    resolver: Resolver,
    tls: Arc<WorkerTls>,
    made: Arc<Mutex<Option<Made>>>,
}

/// What was made with one configuration.
#[derive(Debug)]
struct Made {
    configs: Arc<Configs>,
    clients: Clients,
    /// reqwest takes the name in a certificate from the URL, so a worker whose name is not its
    /// host has clients of its own, in which the name has the host's addresses.
    named: LruCache<(String, DnsName<'static>), Clients>,
}

impl SecureClients {
    pub(super) fn new(maker: ClientMaker, resolver: Resolver, tls: Arc<WorkerTls>) -> Self {
        Self {
            maker,
            resolver,
            tls,
            made: Arc::default(),
        }
    }

    /// The name that a worker's certificate must have, where that is not the host of its URL.
    pub(super) fn name<'a>(&'a self, url: &'a WorkerUrl) -> Option<&'a DnsName<'static>> {
        let secure = url.scheme() == Scheme::Https;
        secure.then(|| self.tls.name(url)).flatten()
    }

    /// The clients for a worker.
    ///
    /// # Errors
    /// When the system's certificates cannot be used.
    pub(super) async fn of(&self, url: &WorkerUrl) -> Result<Clients, UpstreamError> {
        let configs = self.tls.configs().await?;
        let made = self.made(&configs, url);
        made.map_err(UpstreamError::Tls)
    }

    fn made(&self, configs: &Arc<Configs>, url: &WorkerUrl) -> io::Result<Clients> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match &mut *made {
            Some(made) if Arc::ptr_eq(&made.configs, configs) => made,
            outdated => outdated.insert(Made {
                configs: Arc::clone(configs),
                clients: self.maker.make(&self.resolver, &configs.http1)?,
                named: LruCache::new(MAX_NAMED),
            }),
        };
        let Some(name) = self.name(url) else {
            return Ok(made.clients.clone());
        };
        let clients = made
            .named
            .try_get_or_insert((url.host().to_owned(), name.clone()), || {
                let host = Fixed {
                    resolver: self.resolver.clone(),
                    host: url.host().into(),
                };
                self.maker.make(&host, &configs.http1)
            });
        clients.cloned()
    }
}

/// Gives every name the addresses of one host.
#[derive(Clone, Debug)]
struct Fixed {
    resolver: Resolver,
    host: Arc<str>,
}

impl Resolve for Fixed {
    fn resolve(&self, _: Name) -> Resolving {
        self.resolver.addresses(&self.host)
    }
}
