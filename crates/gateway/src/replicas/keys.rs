//! Routing keys of the policy `manual`, assigned alike by several gateways.
//!
//! - A lane assigns a key by what this gateway knows, and knows nothing of this.
//! - Here, on the control thread, what has been assigned is claimed, by one script for up to 256
//!   keys, at most 20 ms later. The first claim of a key decides; a gateway that comes second takes
//!   its assignment over, and so do all others, for the script publishes it.
//! - A new gateway reads all keys that the server has, in pages, and so does one that was cut off.
//!   It claims all keys that it knows again, so that a server that has lost them gets them back.
//! - Without the server each gateway goes on with what it knows.

use std::sync::Arc;
use std::time::Duration;

use routing::sticky::{Assignment, Claim, KeyTable, SharedKey};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::exchange::Leaving;
use super::key_link::{KeyLink, KeyServer, PoolKey};
use super::link::LinkError;
use super::status::ReplicaStatus;
use crate::balancer::Balancer;
use crate::telemetry::Metrics;

/// Keys of one script.
const MAX_CLAIMS: usize = 256;
/// Pause between two looks for keys to claim.
const PAUSE: Duration = Duration::from_millis(20);
/// The same while there is more to do.
const SHORT_PAUSE: Duration = Duration::from_millis(1);
/// Pause between two looks whether a policy has keys.
const IDLE_PAUSE: Duration = Duration::from_millis(250);
/// Pages that are read at most: 10 million keys of any kind in the server.
const MAX_PAGES: u32 = 20_000;
/// Pause between two news without contents.
const ECHO_INTERVAL: Duration = Duration::from_secs(2);
/// Own news that have not come back for so long show that the link is lost.
const ECHO_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two attempts to make a link: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Pause between two updates of what is shown.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);
/// Time for the last claims of a gateway that stops.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// What the task works with.
#[derive(Debug)]
pub(crate) struct KeyParts {
    pub(crate) balancer: Arc<Balancer>,
    pub(crate) status: Arc<ReplicaStatus>,
    pub(crate) metrics: Arc<Metrics>,
    /// Where the server is, without credentials.
    pub(crate) address: String,
}

/// The running task.
#[derive(Debug)]
pub(crate) struct Keys<S> {
    parts: KeyParts,
    server: Arc<S>,
    /// The pools of workers whose policies have keys.
    tables: Vec<(u64, Arc<KeyTable>)>,
    reading: Option<Reading>,
    connected: bool,
    /// All that the server had has been read once.
    is_warm: bool,
    echo_sent: Instant,
    echo_came: Instant,
    shown: Instant,
    totals: Totals,
}

/// Where the server's keys are read.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    next: u64,
    pages: u32,
}

/// What has become of keys so far.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    assigned: u64,
    refreshed: u64,
    taken_over: u64,
    learnt: u64,
}

impl<S: KeyServer> Keys<S> {
    pub(crate) fn new(parts: KeyParts, server: S) -> Self {
        let now = Instant::now();
        Self {
            parts,
            server: Arc::new(server),
            tables: Vec::new(),
            reading: None,
            connected: false,
            is_warm: false,
            echo_sent: now,
            echo_came: now,
            shown: now,
            totals: Totals::default(),
        }
    }

    /// Runs until it is ended.
    pub(crate) fn spawn(self) -> Leaving {
        Leaving::spawn(|left| self.run(left))
    }

    async fn run(mut self, mut left: oneshot::Receiver<()>) {
        let (mut pause, mut lost) = (FIRST_PAUSE, None);
        loop {
            self.follow();
            self.show();
            if self.tables.is_empty() {
                tokio::select! {
                    () = sleep(IDLE_PAUSE) => continue,
                    _ = &mut left => return,
                }
            }
            let server = Arc::clone(&self.server);
            let link = tokio::select! {
                link = server.connect() => link,
                _ = &mut left => return,
            };
            let error = match link {
                Ok(link) => {
                    pause = FIRST_PAUSE;
                    lost = None;
                    self.reached();
                    match self.share(link, &mut left).await {
                        Ok(Ended::Left) => return,
                        Ok(Ended::Idle) => continue,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            self.connected = false;
            self.show();
            if lost.as_ref() != Some(&error) {
                let server = &self.parts.address;
                warn!(%server, %error, "routing keys are not shared, each gateway goes on with its own");
                lost = Some(error);
            }
            tokio::select! {
                () = sleep(pause) => {}
                _ = &mut left => return,
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    fn reached(&mut self) {
        info!(server = %self.parts.address, "routing keys are shared with other gateways");
        self.connected = true;
        let now = Instant::now();
        (self.echo_sent, self.echo_came) = (now, now);
        self.begin_anew();
    }

    /// Reads all that the server has, and claims all that is known.
    fn begin_anew(&mut self) {
        self.reading = Some(Reading::default());
        for (_, table) in &self.tables {
            table.share();
        }
        self.show();
    }

    /// Shares keys until this gateway leaves, or no policy has any.
    ///
    /// # Errors
    /// When the link is lost.
    async fn share(
        &mut self,
        mut link: S::Link,
        left: &mut oneshot::Receiver<()>,
    ) -> Result<Ended, LinkError> {
        let mut due = Instant::now();
        loop {
            tokio::select! {
                biased;
                _ = &mut *left => {
                    let _ = timeout(LEAVE_TIMEOUT, self.claim_all(&mut link)).await;
                    return Ok(Ended::Left);
                }
                () = sleep_until(due) => {}
                news = link.next() => match news {
                    Some(news) => {
                        self.echo_came = Instant::now();
                        self.learn(&news);
                        continue;
                    }
                    None => return Err(LinkError("connection lost".to_owned())),
                },
            }
            if self.follow() {
                self.begin_anew();
            }
            if self.tables.is_empty() {
                return Ok(Ended::Idle);
            }
            let busy = self.claim_some(&mut link).await? | self.read(&mut link).await?;
            due = Instant::now() + if busy { SHORT_PAUSE } else { PAUSE };
            self.keep_alive(&mut link).await?;
            if self.shown.elapsed() >= SHOW_INTERVAL {
                self.show();
            }
        }
    }

    /// Follows the policies. True if they have other keys than before.
    fn follow(&mut self) -> bool {
        let tables = self.parts.balancer.key_tables();
        let mut pairs = tables.iter().zip(&self.tables);
        let same = tables.len() == self.tables.len()
            && pairs.all(|(new, old)| new.0 == old.0 && Arc::ptr_eq(&new.1, &old.1));
        if same {
            return false;
        }
        self.tables = tables;
        true
    }

    /// Claims what is waiting, of each pool up to [`MAX_CLAIMS`] keys. True if there may be more.
    async fn claim_some(&mut self, link: &mut S::Link) -> Result<bool, LinkError> {
        let (mut claims, mut more) = (Vec::new(), false);
        for at in 0..self.tables.len() {
            let Some((pool, table)) = self.tables.get(at).cloned() else {
                break;
            };
            claims.clear();
            let now = self.parts.balancer.fleet.now();
            table.take_claims(MAX_CLAIMS, now, &mut claims);
            if !claims.is_empty() {
                let after = link.claim(pool, &claims).await?;
                self.count(&claims, &after);
                table.settle(claims.iter().zip(after));
            }
            more |= table.pending() > 0;
        }
        Ok(more)
    }

    async fn claim_all(&mut self, link: &mut S::Link) -> Result<(), LinkError> {
        while self.claim_some(link).await? {}
        Ok(())
    }

    fn count(&mut self, claims: &[Claim], after: &[Assignment]) {
        let mut counts = Totals::default();
        for (claim, after) in claims.iter().zip(after) {
            let same = claim.assignment.workers == after.workers;
            match (same, claim.changed) {
                (true, true) => counts.assigned += 1,
                (true, false) => counts.refreshed += 1,
                (false, _) => counts.taken_over += 1,
            }
        }
        let metrics = &self.parts.metrics.shared_state;
        metrics.keys_claimed("assigned", counts.assigned);
        metrics.keys_claimed("refreshed", counts.refreshed);
        metrics.keys_claimed("taken_over", counts.taken_over);
        self.totals.assigned += counts.assigned;
        self.totals.refreshed += counts.refreshed;
        self.totals.taken_over += counts.taken_over;
    }

    /// Reads a page of what the server has. True if there is another one.
    async fn read(&mut self, link: &mut S::Link) -> Result<bool, LinkError> {
        let Some(reading) = self.reading else {
            return Ok(false);
        };
        let page = link.page(reading.next).await?;
        self.learn(&page.keys);
        let has_room = self.tables.iter().any(|(_, table)| !table.is_full());
        let pages = reading.pages + 1;
        let next = page.next.filter(|_| has_room && pages < MAX_PAGES);
        self.reading = next.map(|next| Reading { next, pages });
        if self.reading.is_none() {
            self.is_warm = true;
            self.show();
        }
        Ok(self.reading.is_some())
    }

    /// Takes over keys of the pools that are here.
    fn learn(&mut self, keys: &[PoolKey]) {
        let now = self.parts.balancer.fleet.now();
        for of_pool in keys.chunk_by(|one, other| one.pool == other.pool) {
            let pool = of_pool.first().map(|one| one.pool);
            let table = self.tables.iter().find(|(known, _)| Some(*known) == pool);
            if let Some((_, table)) = table {
                let shared: Vec<SharedKey> = of_pool.iter().map(|one| one.key).collect();
                table.learn(&shared, now);
                self.totals.learnt += shared.len() as u64;
                let learnt = &self.parts.metrics.shared_state.keys_learnt;
                learnt.inc_by(shared.len() as u64);
            }
        }
    }

    /// Notices a link whose news do not come.
    async fn keep_alive(&mut self, link: &mut S::Link) -> Result<(), LinkError> {
        if self.echo_sent.elapsed() >= ECHO_INTERVAL {
            self.echo_sent = Instant::now();
            link.echo().await?;
        }
        if self.echo_came.elapsed() > ECHO_TIMEOUT {
            return Err(LinkError("own messages do not come back".to_owned()));
        }
        Ok(())
    }

    fn show(&mut self) {
        self.shown = Instant::now();
        let state = match (self.tables.is_empty(), self.connected) {
            (true, _) => "none",
            (false, true) => "shared",
            (false, false) => "apart",
        };
        let count = |of: fn(&KeyTable) -> usize| -> usize {
            self.tables.iter().map(|(_, table)| of(table)).sum()
        };
        self.parts.status.show_keys(json!({
            "state": state,
            "warmed_up": self.is_warm,
            "keys": count(KeyTable::count),
            "unclaimed": count(KeyTable::pending),
            "assigned": self.totals.assigned,
            "refreshed": self.totals.refreshed,
            "taken_over": self.totals.taken_over,
            "learnt": self.totals.learnt,
        }));
        let metrics = &self.parts.metrics.shared_state;
        metrics.show_keys(state == "shared");
        if state != "none" {
            for result in ["assigned", "refreshed", "taken_over"] {
                metrics.keys_claimed(result, 0);
            }
        }
    }
}

/// Why keys are shared no longer, besides a lost link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The gateway stops.
    Left,
    /// No policy has keys.
    Idle,
}
