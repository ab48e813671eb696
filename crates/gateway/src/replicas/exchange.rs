//! The exchange with other gateways: batches out, messages in, over a link that may be lost.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use routing::replicas::{
    Clocks, Header, Identity, Journal, Kind, Last, Limits, Outbox, Peers, Sight, Update,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::directory::Directory;
use super::filling::{Filling, MAX_NODES};
use super::link::{Connector, Link, LinkError};
use super::status::{self, Own, ReplicaStatus};
use super::warm_up::WarmUp;
use crate::balancer::Balancer;
use crate::telemetry::Metrics;

/// Pause between two looks whether there is something to say.
const TICK: Duration = Duration::from_millis(5);
/// Ticks between two parts of what a gateway is filled with.
const FILL_EVERY: u32 = 10;
/// Pause between two looks at what is known while there is no link.
const AWAY_INTERVAL: Duration = Duration::from_millis(250);
/// Pause between two attempts to make a link: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Gateways that are filled at once. Another one that asks will ask again elsewhere.
const MAX_FILLING: usize = 2;
/// Ticks between two updates of what is shown.
const SHOW_EVERY: u32 = 200;
/// Own messages that have not come back for so long show that the link is lost: there is one at least
/// every half second.
const ECHO_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the message that this gateway leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// What the exchange works with.
#[derive(Debug)]
pub(crate) struct Replicas {
    pub(crate) balancer: Arc<Balancer>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) status: Arc<ReplicaStatus>,
    pub(crate) metrics: Arc<Metrics>,
    /// Where others are met, without credentials.
    pub(crate) address: String,
}

/// The running exchange.
#[derive(Debug)]
pub(crate) struct Exchange<C> {
    parts: Replicas,
    connector: Arc<C>,
    group: String,
    own: Own,
    outbox: Outbox,
    peers: Peers,
    directory: Directory,
    fillings: Vec<Filling>,
    warm_up: WarmUp,
    ticks: u32,
    /// When an own message came back last, or the link was made.
    echo_at: Duration,
    /// Other gateways that were heard last.
    heard: usize,
}

/// Ends a task that others are to know of.
#[derive(Debug)]
pub(crate) struct Leaving {
    leave: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Leaving {
    /// Runs a task, which ends when what it is given resolves.
    pub(super) fn spawn<F>(run: impl FnOnce(oneshot::Receiver<()>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (leave, left) = oneshot::channel();
        let task = tokio::spawn(run(left));
        Self { leave, task }
    }

    /// Lets others know that this gateway stops, if they can be reached.
    pub(crate) async fn finish(self) {
        let _ = self.leave.send(());
        let _ = timeout(2 * LEAVE_TIMEOUT, self.task).await;
    }
}

impl<C: Connector> Exchange<C> {
    pub(crate) fn new(parts: Replicas, connector: C) -> Self {
        let id = fastrand::u64(..);
        let version = env!("CARGO_PKG_VERSION").bytes().chain([0; 8]);
        let mut identity = Identity {
            id,
            version: [0; 8],
        };
        for (to, byte) in identity.version.iter_mut().zip(version) {
            *to = byte;
        }
        let now = parts.balancer.fleet.now();
        Self {
            group: connector.group(),
            connector: Arc::new(connector),
            own: Own {
                id,
                ..Own::default()
            },
            outbox: Outbox::new(identity, Limits::GATEWAY),
            peers: Peers::new(id),
            directory: Directory::default(),
            fillings: Vec::new(),
            warm_up: WarmUp::new(now),
            parts,
            ticks: 0,
            echo_at: now,
            heard: 0,
        }
    }

    /// Runs until it is ended.
    pub(crate) fn spawn(self) -> Leaving {
        Leaving::spawn(|left| self.run(left))
    }

    async fn run(mut self, mut left: oneshot::Receiver<()>) {
        let mut pause = FIRST_PAUSE;
        let mut lost = None;
        loop {
            let connector = Arc::clone(&self.connector);
            let channels = [
                self.channel("all"),
                self.channel(&status::name(self.own.id)),
            ];
            let link = tokio::select! {
                link = connector.connect(channels) => link,
                () = self.idle() => return,
                _ = &mut left => return,
            };
            let error = match link {
                Ok(link) => {
                    pause = FIRST_PAUSE;
                    lost = None;
                    self.connected();
                    match self.exchange(link, &mut left).await {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            self.own.connected = false;
            self.show();
            if lost.as_ref() != Some(&error) {
                let server = &self.parts.address;
                warn!(%server, %error, "no way to other gateways, routing by what is known");
                lost = Some(error);
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.idle() => {}
                _ = &mut left => return,
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Forgets what has gone out of date while there is no link. Does not end.
    async fn idle(&mut self) {
        let mut ticks = interval(AWAY_INTERVAL);
        loop {
            ticks.tick().await;
            self.expire();
            self.own.dropped += self.parts.journal.clear();
            self.show();
        }
    }

    fn connected(&mut self) {
        info!(server = %self.parts.address, id = %status::name(self.own.id), "other gateways are reached");
        self.own.connected = true;
        self.outbox.resync();
        self.echo_at = self.now();
        self.warm_up = WarmUp::new(self.echo_at);
        self.fillings.clear();
    }

    /// Exchanges messages until this gateway leaves.
    ///
    /// # Errors
    /// When the link is lost.
    async fn exchange(
        &mut self,
        mut link: C::Link,
        left: &mut oneshot::Receiver<()>,
    ) -> Result<(), LinkError> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = &mut *left => {
                    let leave = self.outbox.notice(Kind::Leave, self.clocks());
                    let _ = timeout(LEAVE_TIMEOUT, link.publish(&self.channel("all"), leave)).await;
                    return Ok(());
                }
                _ = ticks.tick() => {
                    for (channel, message) in self.due() {
                        link.publish(&channel, message).await?;
                    }
                    if self.now().saturating_sub(self.echo_at) > ECHO_TIMEOUT {
                        return Err(LinkError("own messages do not come back".to_owned()));
                    }
                }
                message = link.next() => match message {
                    Some(message) => self.receive(&message),
                    None => return Err(LinkError("connection lost".to_owned())),
                },
            }
        }
    }

    /// The messages to send at this moment.
    fn due(&mut self) -> Vec<(String, Vec<u8>)> {
        self.expire();
        let mut messages = Vec::new();
        let (clocks, loads) = (self.clocks(), self.directory.loads());
        if let Some(batch) = self.outbox.batch(clocks, &self.parts.journal, loads) {
            messages.push((self.channel("all"), batch));
        }
        if let Some(peer) = self.warm_up.due(&self.peers, clocks.now) {
            let ask = self.outbox.notice(Kind::Ask, clocks);
            messages.push((self.channel(&status::name(peer)), ask));
        }
        self.ticks += 1;
        let fillings = self.fillings.iter_mut();
        for filling in fillings.filter(|_| self.ticks.is_multiple_of(FILL_EVERY)) {
            let part = filling.part(&self.directory);
            let last = if filling.is_done() {
                Last::Yes
            } else {
                Last::No
            };
            let part = self.outbox.part(clocks, &part, last);
            messages.push((filling.channel.clone(), part));
        }
        self.fillings.retain(|filling| !filling.is_done());
        if self.ticks.is_multiple_of(SHOW_EVERY) {
            self.show();
        }
        messages
    }

    fn receive(&mut self, message: &[u8]) {
        let (now, unix_ms) = (self.now(), unix_ms());
        self.directory
            .refresh(&self.parts.balancer.fleet, &self.peers);
        let (directory, balancer) = (&self.directory, &self.parts.balancer);
        let received = self.peers.receive(message, now, |update| {
            take_over(balancer, directory, update);
        });
        let Ok(header) = received else {
            self.parts.metrics.replicas.malformed.inc();
            return;
        };
        if header.sender == self.own.id {
            let took = unix_ms.cast_signed() - header.sent_at_ms.cast_signed();
            self.own.round_trip_ms = Some(took);
            self.echo_at = now;
            return;
        }
        self.peers.note_lag(header.sender, unix_ms);
        self.look_around();
        self.answer(header, now);
    }

    /// Does what a message asks for.
    fn answer(&mut self, header: Header, now: Duration) {
        match header.kind {
            Kind::Ask => {
                let known = self.fillings.iter().any(|one| one.to == header.sender);
                if !known && self.fillings.len() < MAX_FILLING {
                    let channel = self.channel(&status::name(header.sender));
                    let exports = self.parts.balancer.export_prefixes(MAX_NODES);
                    let filling = Filling::new(channel, header.sender, exports);
                    self.fillings.push(filling);
                }
            }
            Kind::Part => {
                if self.warm_up.answered(&header, now) {
                    let from = status::name(header.sender);
                    info!(%from, "took over what another gateway knows");
                }
            }
            Kind::Batch | Kind::Leave => {}
        }
    }

    fn expire(&mut self) {
        let now = self.now();
        self.directory
            .refresh(&self.parts.balancer.fleet, &self.peers);
        let (directory, balancer) = (&self.directory, &self.parts.balancer);
        self.peers
            .expire(now, |update| take_over(balancer, directory, update));
        self.look_around();
    }

    /// Lets policies know whether other gateways are heard. What a worker reports of its load counts
    /// for those that are heard anew until it reports again, so it is forgotten.
    fn look_around(&mut self) {
        let live = self.peers.totals().live;
        if live > self.heard {
            for worker in self.parts.balancer.fleet.workers().iter() {
                worker.load.forget_others();
            }
        }
        if live > 0 || self.own.connected {
            self.heard = live;
        }
        let sight = match (live, self.heard) {
            (1.., _) => Sight::Shared,
            (0, 0) => Sight::Unheard,
            (0, lost) => Sight::Apart(u32::try_from(lost).unwrap_or(u32::MAX).saturating_add(1)),
        };
        self.parts.journal.set_sight(sight);
    }

    fn show(&self) {
        let (parts, sent) = (&self.parts, self.outbox.totals());
        let own = Own {
            sent,
            warm: self.warm_up.is_done(),
            dropped: self.own.dropped + sent.dropped + parts.journal.dropped(),
            ..self.own
        };
        let now = parts.balancer.fleet.now();
        parts.status.show(&parts.address, own, &self.peers, now);
        let metrics = &parts.metrics.replicas;
        metrics.show_link(own.connected);
        metrics.show(sent, self.peers.totals());
        metrics.show_dropped(own.dropped);
    }

    fn channel(&self, to: &str) -> String {
        format!("{}:{to}", self.group)
    }

    fn now(&self) -> Duration {
        self.parts.balancer.fleet.now()
    }

    fn clocks(&self) -> Clocks {
        Clocks {
            now: self.now(),
            unix_ms: unix_ms(),
        }
    }
}

/// Puts in force what another gateway says.
fn take_over(balancer: &Balancer, directory: &Directory, update: Update<'_>) {
    match update {
        Update::Load(load) => {
            if let Some(worker) = directory.find(load.worker) {
                worker.load.set_peers(load.counts);
            }
        }
        Update::Placement(placement) => {
            let workers = placement.workers.iter();
            for worker in workers.filter_map(|worker| directory.find(*worker)) {
                balancer.learn_placement(placement.blocks, worker);
            }
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
