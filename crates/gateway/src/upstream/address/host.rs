//! The addresses of one host: the last good answer, refreshed while it is used.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use super::lookups::Lookups;

/// Age at which an answer is refreshed, once the host is used again.
const REFRESH_AFTER: Duration = Duration::from_secs(10);
/// Pause after a look-up that gave no address.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long an address that failed goes last.
const DEMOTED_FOR: Duration = Duration::from_mins(1);

/// A name has no address, as far as the gateway can find out.
#[derive(Debug, Error)]
#[error("cannot look up {name}: {why}")]
pub(crate) struct LookupError {
    name: String,
    why: String,
}

/// A host and its addresses.
#[derive(Debug)]
pub(in crate::upstream) struct Host {
    name: String,
    /// A host that is an address needs no look-up.
    literal: Option<IpAddr>,
    lookups: Arc<Lookups>,
    state: Mutex<State>,
    /// Notified whenever a look-up has ended.
    looked_up: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Of the last good answer, in its order.
    known: Vec<Address>,
    /// When the next look-up is due.
    due: Option<Instant>,
    looking: bool,
    /// Why the last look-up failed; `None` after a good one.
    failure: Option<String>,
    /// Look-ups that have ended.
    ended: u64,
}

#[derive(Debug)]
struct Address {
    ip: IpAddr,
    demoted_until: Option<Instant>,
}

impl Host {
    pub(super) fn new(name: String, lookups: Arc<Lookups>) -> Self {
        Self {
            literal: name.parse().ok(),
            name,
            lookups,
            state: Mutex::default(),
            looked_up: Notify::new(),
        }
    }

    /// The addresses, in the order in which they should be tried. An old answer is given at
    /// once, and refreshed for later; only without any answer is a look-up waited for.
    ///
    /// # Errors
    /// When there never was an answer, and there is none now.
    pub(in crate::upstream) async fn addresses(
        self: &Arc<Self>,
    ) -> Result<Vec<IpAddr>, LookupError> {
        if let Some(ip) = self.literal {
            return Ok(vec![ip]);
        }
        loop {
            let ended = self.looked_up.notified();
            {
                let mut state = self.state();
                self.refresh_when_due(&mut state);
                if !state.known.is_empty() {
                    return Ok(state.in_order());
                }
                if !state.looking {
                    return Err(self.failed(&state));
                }
            }
            ended.await;
        }
    }

    /// Looks the name up once more and waits for the answer, unless it is too early for that.
    pub(in crate::upstream) async fn refresh(self: &Arc<Self>) {
        let seen = {
            let mut state = self.state();
            let early = state
                .due
                .is_some_and(|due| Instant::now() + REFRESH_AFTER < due + RETRY_AFTER);
            if self.literal.is_some() || (early && !state.looking) {
                return;
            }
            self.look_up(&mut state);
            state.ended
        };
        loop {
            let ended = self.looked_up.notified();
            if self.state().ended != seen {
                return;
            }
            ended.await;
        }
    }

    /// Whether the host has several addresses, so that it matters which one is tried first.
    pub(in crate::upstream) fn has_choice(&self) -> bool {
        self.literal.is_none() && self.state().known.len() > 1
    }

    /// Whether a connection to this address still leads to the host.
    pub(in crate::upstream) fn is_current(&self, ip: IpAddr) -> bool {
        if self.literal.is_some() {
            return true;
        }
        let state = self.state();
        state.known.is_empty() || state.known.iter().any(|known| known.ip == ip)
    }

    /// A connection was made to this address.
    pub(super) fn connected(&self, ip: IpAddr) {
        self.mark(ip, None);
    }

    /// No connection could be made to this address, or not in time: for a while, others go first.
    pub(super) fn demote(&self, ip: IpAddr) {
        self.mark(ip, Some(Instant::now() + DEMOTED_FOR));
    }

    fn mark(&self, ip: IpAddr, demoted_until: Option<Instant>) {
        if self.literal.is_none() {
            let mut state = self.state();
            let mut known = state.known.iter_mut();
            if let Some(address) = known.find(|known| known.ip == ip) {
                address.demoted_until = demoted_until;
            }
        }
    }

    fn refresh_when_due(self: &Arc<Self>, state: &mut State) {
        if state.due.is_none_or(|due| Instant::now() >= due) {
            self.look_up(state);
        }
    }

    fn look_up(self: &Arc<Self>, state: &mut State) {
        if !state.looking {
            state.looking = true;
            let host = Arc::clone(self);
            let apply = move |answer| host.apply(answer);
            self.lookups.start(self.name.clone(), apply);
        }
    }

    fn apply(&self, answer: io::Result<Vec<IpAddr>>) {
        let mut state = self.state();
        let answer = match answer {
            Ok(found) if found.is_empty() => Err("the answer is empty".to_owned()),
            Ok(found) => Ok(found),
            Err(error) => Err(error.to_string()),
        };
        let (host, known) = (&self.name, state.known.len());
        match answer {
            Ok(found) => {
                if state.failure.take().is_some() {
                    info!(host, "name is looked up again");
                }
                state.replace(&found);
                state.due = Some(Instant::now() + REFRESH_AFTER);
            }
            Err(error) => {
                if state.failure.is_none() {
                    warn!(
                        host,
                        error, known, "cannot look up a name, its last addresses stay in use"
                    );
                }
                state.failure = Some(error);
                state.due = Some(Instant::now() + RETRY_AFTER);
            }
        }
        state.looking = false;
        state.ended += 1;
        drop(state);
        self.looked_up.notify_waiters();
    }

    fn failed(&self, state: &State) -> LookupError {
        LookupError {
            name: self.name.clone(),
            why: state.failure.clone().unwrap_or_default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Addresses that answered go first, those that failed last; among equals the families
    /// take turns (RFC 8305 §4), beginning with that of the system's first choice.
    fn in_order(&self) -> Vec<IpAddr> {
        let now = Instant::now();
        let demoted = |address: &&Address| address.demoted_until.is_some_and(|until| until > now);
        let (last, first): (Vec<_>, Vec<_>) = self.known.iter().partition(demoted);
        [first, last]
            .iter()
            .flat_map(|group| interleaved(group))
            .collect()
    }

    /// Another answer; what is known of addresses that stay holds.
    fn replace(&mut self, found: &[IpAddr]) {
        let mut known: Vec<Address> = Vec::with_capacity(found.len());
        for &ip in found {
            if known.iter().all(|address| address.ip != ip) {
                let before = self.known.iter().find(|address| address.ip == ip);
                known.push(Address {
                    ip,
                    demoted_until: before.and_then(|address| address.demoted_until),
                });
            }
        }
        self.known = known;
    }
}

/// One of each family in turn.
fn interleaved(group: &[&Address]) -> Vec<IpAddr> {
    let ips = group.iter().map(|address| address.ip);
    let first_is_v6 = ips.clone().next().is_some_and(|ip| ip.is_ipv6());
    let (same, other): (Vec<_>, Vec<_>) = ips.partition(|ip| ip.is_ipv6() == first_is_v6);
    let longer = same.len().max(other.len());
    let turn = |at: usize| [same.get(at), other.get(at)].into_iter().flatten().copied();
    (0..longer).flat_map(turn).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::resolver::Resolver;
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const C: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 3));
    const SIX: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    /// Gives an answer, fails, and gives another, one after the other.
    fn changing() -> Arc<Host> {
        let calls = AtomicUsize::new(0);
        let resolver = Resolver::with(None, move |_| {
            let call = calls.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                match call {
                    0 => Ok(vec![A, B]),
                    1 => Err(io::Error::other("DNS is away")),
                    _ => Ok(vec![B, C]),
                }
            })
        });
        resolver.host("w.svc")
    }

    #[tokio::test(start_paused = true)]
    async fn last_good_answer_stays_while_look_ups_fail_and_is_replaced_by_the_next() {
        let host = changing();
        assert_eq!(host.addresses().await.unwrap(), [A, B]);
        tokio::time::sleep(REFRESH_AFTER).await;
        // The old answer at once; the look-up behind it fails.
        assert_eq!(host.addresses().await.unwrap(), [A, B]);
        tokio::time::sleep(RETRY_AFTER).await;
        assert_eq!(host.addresses().await.unwrap(), [A, B]);
        assert!(host.is_current(A) && !host.is_current(C));
        tokio::time::sleep(RETRY_AFTER).await;
        assert_eq!(host.addresses().await.unwrap(), [B, C]);
        assert!(!host.is_current(A) && host.is_current(C));
    }

    #[tokio::test(start_paused = true)]
    async fn refresh_asked_for_by_many_is_one_look_up() {
        let resolver = Resolver::with(None, |_| Box::pin(async { Ok(vec![A]) }));
        let host = resolver.host("w");
        host.addresses().await.unwrap();
        tokio::time::sleep(RETRY_AFTER).await;
        tokio::join!(host.refresh(), host.refresh());
        assert_eq!(host.state().ended, 2);
        // Too early for another.
        host.refresh().await;
        assert_eq!(host.state().ended, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn name_without_any_answer_is_an_error_that_says_which() {
        let resolver = Resolver::with(None, |_| Box::pin(async { Ok(vec![]) }));
        let error = resolver.host("nowhere").addresses().await.unwrap_err();
        assert!(error.to_string().contains("nowhere"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn address_that_failed_goes_last_until_it_works_or_time_passes() {
        let host = changing();
        host.addresses().await.unwrap();
        host.demote(A);
        assert_eq!(host.addresses().await.unwrap(), [B, A]);
        host.connected(A);
        assert_eq!(host.addresses().await.unwrap(), [A, B]);
        host.demote(A);
        // An answer with the same addresses does not forget that.
        host.state().replace(&[A, B]);
        assert_eq!(host.state().in_order(), [B, A]);
        tokio::time::sleep(DEMOTED_FOR).await;
        assert_eq!(host.state().in_order(), [A, B]);
    }

    #[test]
    fn families_take_turns() {
        let known = [A, B, C, SIX].map(|ip| Address {
            ip,
            demoted_until: None,
        });
        let group: Vec<_> = known.iter().collect();
        assert_eq!(interleaved(&group), [A, SIX, B, C]);
    }

    #[tokio::test]
    async fn address_needs_no_look_up_and_is_always_current() {
        let resolver = Resolver::with(None, |_| unreachable!("it is an address"));
        let host = resolver.host("10.0.0.1");
        assert_eq!(host.addresses().await.unwrap(), [A]);
        host.refresh().await;
        host.demote(A);
        assert!(host.is_current(B) && !host.has_choice());
    }

    #[tokio::test]
    async fn workers_of_one_host_share_its_addresses() {
        let resolver = Resolver::with(None, |_| Box::pin(async { Ok(vec![A]) }));
        let (one, other) = (resolver.host("w"), resolver.host("w"));
        assert!(Arc::ptr_eq(&one, &other));
        let gone = Arc::downgrade(&one);
        drop((one, other));
        assert!(gone.upgrade().is_none(), "the resolver keeps no host alive");
    }
}
