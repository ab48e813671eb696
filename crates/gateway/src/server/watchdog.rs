//! Looks at the client connections of one lane once a second, so that no connection needs timers
//! of its own.

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::connection_state::{ClientLimits, ConnectionState};
use super::lane_status::{LaneStatus, Shed};

/// Pause between looks. Limits are counted in them.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The connections of one lane.
#[derive(Clone, Debug)]
pub(super) struct Watchdog {
    limits: ClientLimits,
    status: Arc<LaneStatus>,
    connections: Arc<Mutex<Vec<Weak<ConnectionState>>>>,
}

impl Watchdog {
    pub(super) fn new(limits: ClientLimits, status: &Arc<LaneStatus>) -> Self {
        Self {
            limits,
            status: Arc::clone(status),
            connections: Arc::default(),
        }
    }

    /// From now on clients get the time that they have while the lane drains.
    pub(super) fn drain(&mut self) {
        self.limits.write = self.limits.write_in_drain;
    }

    /// The state of a new connection, which is looked at from now on.
    pub(super) fn watch(&self) -> Arc<ConnectionState> {
        let state = Arc::new(ConnectionState::new(Arc::clone(&self.status)));
        self.lock().push(Arc::downgrade(&state));
        state
    }

    /// A second has passed.
    pub(super) fn look(&self) {
        self.lock().retain(|connection| {
            let connection = connection.upgrade();
            connection.inspect(|it| it.look(self.limits)).is_some()
        });
        self.status.look();
    }

    /// Ends as many connections as the control thread asked for: those that have been without
    /// a request for longest.
    pub(super) fn shed(&self) {
        let (count, which) = self.status.take_shed();
        let connections = self.lock();
        let mut idle: Vec<_> = connections
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|connection| which == Shed::Any || !connection.is_served())
            .filter_map(|connection| Some((connection.idle_for()?, connection)))
            .collect();
        drop(connections);
        idle.sort_by_key(|(idle_for, _)| Reverse(*idle_for));
        for (_, connection) in idle.into_iter().take(count) {
            connection.doom();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<ConnectionState>>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection_state::InProgress;
    use super::*;

    const LIMITS: ClientLimits = ClientLimits {
        head: 100,
        idle: 100,
        write: 100,
        write_in_drain: 2,
    };

    #[tokio::test(start_paused = true)]
    async fn connections_that_have_been_idle_for_longest_are_shed_and_busy_ones_never() {
        let status = Arc::new(LaneStatus::default());
        let watchdog = Watchdog::new(LIMITS, &status);
        let (old, used, busy) = (watchdog.watch(), watchdog.watch(), watchdog.watch());
        drop(InProgress::new(&used));
        let request = InProgress::new(&busy);
        (0..3).for_each(|_| watchdog.look());
        let new = watchdog.watch();
        watchdog.look();
        status.ask_to_shed(1, Shed::Any);
        watchdog.shed();
        assert!(old.is_ended() && !busy.is_ended() && !new.is_ended());
        status.ask_to_shed(5, Shed::Unused);
        watchdog.shed();
        assert!(new.is_ended() && !used.is_ended() && !busy.is_ended());
        status.ask_to_shed(5, Shed::Any);
        watchdog.shed();
        assert!(used.is_ended() && !busy.is_ended());
        drop(request);
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_reads_nothing_has_less_time_while_the_lane_drains() {
        let mut watchdog = Watchdog::new(LIMITS, &Arc::default());
        let state = watchdog.watch();
        let _request = InProgress::new(&state);
        state.wrote(true);
        (0..3).for_each(|_| watchdog.look());
        assert!(!state.is_ended());
        watchdog.drain();
        watchdog.look();
        assert!(state.is_ended());
    }

    #[tokio::test(start_paused = true)]
    async fn lane_is_quiet_since_its_last_request() {
        let status = Arc::new(LaneStatus::default());
        let watchdog = Watchdog::new(LIMITS, &status);
        let state = watchdog.watch();
        watchdog.look();
        assert_eq!(status.quiet_for(), None);
        drop(InProgress::new(&state));
        assert_eq!(status.quiet_for(), Some(Duration::ZERO));
        watchdog.look();
        tokio::time::advance(Duration::from_secs(7)).await;
        watchdog.look();
        assert_eq!(status.quiet_for(), Some(Duration::from_secs(7)));
        drop(state);
        watchdog.look();
        assert!(
            watchdog.lock().is_empty(),
            "closed connections are forgotten"
        );
    }
}
