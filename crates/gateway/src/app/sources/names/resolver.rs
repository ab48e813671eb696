//! Look-ups of names by the system.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::RData;
use thiserror::Error;
use tokio::net::lookup_host;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

use crate::config::{Lookup, WorkerName, WorkerUrl};

/// Longest time for a look-up.
const LIMIT: Duration = Duration::from_secs(5);
/// How long addresses hold: the system does not say.
const ADDRESSES_HOLD: Duration = Duration::from_secs(5);
/// How long records hold at least and at most, whatever they say.
const RECORDS_HOLD: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// What a name stands for now.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) workers: Vec<WorkerUrl>,
    /// When to look again.
    pub(super) hold: Duration,
}

/// Why a name stands for nothing known.
#[derive(Debug, Error)]
pub(super) enum LookupError {
    #[error("no answer within {} s", LIMIT.as_secs())]
    TimedOut,
    #[error(transparent)]
    System(#[from] std::io::Error),
    #[error(transparent)]
    Records(#[from] NetError),
    #[error("the answer names no worker")]
    Empty,
}

impl LookupError {
    /// The `reason` label of metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::System(_) | Self::Records(_) => "not_resolved",
            Self::Empty => "empty",
        }
    }
}

/// Looks names up.
pub(super) trait Resolve {
    /// The workers that a name stands for.
    fn resolve(&self, name: &WorkerName)
    -> impl Future<Output = Result<Found, LookupError>> + Send;
}

/// The system's resolver for addresses, so that /etc/hosts and nsswitch.conf hold, and its name
/// servers for SRV records.
#[derive(Default)]
pub(super) struct SystemResolver {
    records: OnceCell<TokioResolver>,
}

impl Resolve for SystemResolver {
    async fn resolve(&self, name: &WorkerName) -> Result<Found, LookupError> {
        let found = async {
            match name.lookup {
                Lookup::Addresses => addresses(name).await,
                Lookup::Services => {
                    let build = || async { TokioResolver::builder_tokio()?.build() };
                    services(self.records.get_or_try_init(build).await?, name).await
                }
            }
        };
        let found = timeout(LIMIT, found).await;
        let found = found.map_err(|_| LookupError::TimedOut)??;
        if found.workers.is_empty() {
            return Err(LookupError::Empty);
        }
        Ok(found)
    }
}

async fn addresses(name: &WorkerName) -> Result<Found, LookupError> {
    let found = lookup_host((name.host(), 0)).await?;
    // In an order of its own: the system's changes from one answer to the next.
    let found: BTreeSet<IpAddr> = found.map(|address| address.ip()).collect();
    Ok(Found {
        workers: found.into_iter().filter_map(|it| name.at(it)).collect(),
        hold: ADDRESSES_HOLD,
    })
}

/// The targets of the records with the best priority (RFC 2782). Weights are left to the policy.
pub(super) async fn services(
    resolver: &TokioResolver,
    name: &WorkerName,
) -> Result<Found, LookupError> {
    let answer = resolver.srv_lookup(name.host()).await?;
    let records = answer
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(service) => Some(service),
            _ => None,
        });
    let records: Vec<_> = records.collect();
    let best = records.iter().map(|service| service.priority).min();
    let targets: BTreeSet<(String, u16)> = records
        .into_iter()
        .filter(|service| Some(service.priority) == best)
        .map(|service| {
            let target = service.target.to_utf8();
            (target.trim_end_matches('.').to_owned(), service.port)
        })
        .collect();
    let [least, most] = RECORDS_HOLD;
    let left = answer
        .valid_until()
        .saturating_duration_since(Instant::now().into_std());
    Ok(Found {
        workers: targets
            .iter()
            .filter_map(|(host, port)| name.url(host, *port))
            .collect(),
        hold: left.clamp(least, most),
    })
}

#[cfg(test)]
mod tests {
    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use hickory_resolver::proto::op::{Message, OpCode};
    use hickory_resolver::proto::rr::rdata::SRV;
    use hickory_resolver::proto::rr::{Name, Record};
    use tokio::net::UdpSocket;

    use super::*;

    /// A resolver whose name server answers every question with these records.
    async fn resolver(records: &'static [(u16, u16, &str)], ttl: u32) -> TokioResolver {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut udp = ConnectionConfig::udp();
        udp.port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let mut answer = Message::response(question.metadata.id, OpCode::Query);
                let name = question.queries[0].name().clone();
                answer.add_query(question.queries[0].clone());
                answer.add_answers(records.iter().map(|(priority, port, target)| {
                    let target = Name::from_ascii(target).unwrap();
                    let service = RData::SRV(SRV::new(*priority, 1, *port, target));
                    Record::from_rdata(name.clone(), ttl, service)
                }));
                let answer = answer.to_vec().unwrap();
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        let server = NameServerConfig::new("127.0.0.1".parse().unwrap(), true, vec![udp]);
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let provider = TokioRuntimeProvider::default();
        TokioResolver::builder_with_config(config, provider)
            .build()
            .unwrap()
    }

    async fn found(records: &'static [(u16, u16, &str)], ttl: u32) -> (Vec<String>, u64) {
        let name = WorkerName::parse("dns+srv://_http._tcp.workers.ns.").unwrap();
        let found = services(&resolver(records, ttl).await, &name.unwrap()).await;
        let found = found.unwrap();
        let urls = found.workers.iter().map(|url| url.as_str().to_owned());
        (
            urls.collect(),
            (found.hold + Duration::from_millis(500)).as_secs(),
        )
    }

    #[tokio::test]
    async fn targets_of_the_best_priority_are_workers_for_as_long_as_the_records_hold() {
        let records = &[
            (10, 30_001, "w-1.ns."),
            (20, 30_000, "spare.ns."),
            (10, 30_000, "w-0.ns."),
            (10, 30_000, "w-0.ns."),
        ];
        let (urls, hold) = found(records, 20).await;
        assert_eq!(urls, ["http://w-0.ns:30000", "http://w-1.ns:30001"]);
        assert_eq!(hold, 20);
        let one = &[(0, 1, "w.")];
        assert_eq!(found(one, 0).await.1, 1);
        assert_eq!(found(one, 86_400).await.1, 30);
    }

    #[tokio::test]
    async fn name_without_records_is_an_error() {
        let name = WorkerName::parse("dns+srv://_http._tcp.none.").unwrap();
        let found = services(&resolver(&[], 5).await, &name.unwrap()).await;
        assert!(found.is_err() || found.unwrap().workers.is_empty());
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_a_worker() {
        let name = WorkerName::parse("dns+http://localhost:8000").unwrap();
        let found = SystemResolver::default().resolve(&name.unwrap()).await;
        let found = found.unwrap();
        let urls: Vec<_> = found.workers.iter().map(WorkerUrl::as_str).collect();
        assert!(urls.contains(&"http://127.0.0.1:8000"), "{urls:?}");
        assert_eq!(found.hold, ADDRESSES_HOLD);
        let nothing = WorkerName::parse("dns+http://nothing.invalid:1").unwrap();
        let error = SystemResolver::default().resolve(&nothing.unwrap()).await;
        assert!(error.is_err());
    }
}
