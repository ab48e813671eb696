//! One snapshot per second for all viewers, and none when there are none.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::api::shared_answer::SharedAnswer;
use crate::error::Error;
use crate::upstream::ControlClient;

/// Viewers at a time.
const MOST_VIEWERS: usize = 8;
/// From one snapshot to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// What an event of data begins and ends with.
const BEGIN: &str = "data: ";
const END: &str = "\n\n";

/// How many snapshots have been built, this one included.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Number(u64);

/// What is written of the fleet, at the end of a buffer.
pub(super) type Write = Arc<dyn Fn(Number, &mut Vec<u8>) + Send + Sync>;

/// Snapshots of the fleet for all that look at it.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    /// The last one, as an event; `None` before the first.
    latest: watch::Sender<Option<Bytes>>,
    viewers: Mutex<Viewers>,
    /// For clients that ask for one.
    asked: SharedAnswer<Option<Bytes>>,
    /// Snapshots built so far.
    built: AtomicU64,
}

#[derive(Debug, Default)]
struct Viewers {
    count: usize,
    /// Runs while there are viewers.
    building: Option<AbortOnDropHandle<()>>,
}

/// A client that gets every snapshot that it keeps up with.
#[derive(Debug)]
pub(super) struct Viewer {
    feed: Arc<Feed>,
    latest: watch::Receiver<Option<Bytes>>,
}

impl Feed {
    /// Adds a viewer; the first one has the building begin, by a task of the control thread.
    ///
    /// # Errors
    /// [`Error::TooManyViewers`].
    pub(super) fn join(
        self: &Arc<Self>,
        control: &ControlClient,
        write: &Write,
    ) -> Result<Viewer, Error> {
        let mut viewers = self.viewers();
        if viewers.count == MOST_VIEWERS {
            return Err(Error::TooManyViewers(MOST_VIEWERS));
        }
        viewers.count += 1;
        if viewers.building.is_none() {
            self.latest.send_replace(None);
            let building = control.spawn(build_snapshots(Arc::clone(self), Arc::clone(write)));
            viewers.building = Some(AbortOnDropHandle::new(building));
        }
        let mut latest = self.latest.subscribe();
        latest.mark_changed();
        Ok(Viewer {
            feed: Arc::clone(self),
            latest,
        })
    }

    /// The snapshot that viewers have, or one that is built for this client and others that ask
    /// now. `None` when the gateway stops meanwhile.
    pub(super) async fn json(
        self: &Arc<Self>,
        control: &ControlClient,
        write: &Write,
    ) -> Option<Bytes> {
        let event = if let Some(event) = self.shown() {
            event
        } else {
            let (control, feed, write) = (control.clone(), Arc::clone(self), Arc::clone(write));
            let build = async move { feed.build(&write) };
            let building = async move { control.spawn(build).await.ok() };
            self.asked.get(building).await??
        };
        Some(event.slice(BEGIN.len()..event.len() - END.len()))
    }

    /// The last snapshot that viewers have; what earlier viewers had is too old.
    fn shown(&self) -> Option<Bytes> {
        let viewers = self.viewers();
        let latest = (viewers.count > 0).then(|| self.latest.borrow().clone());
        latest.flatten()
    }

    /// A snapshot, as an event.
    fn build(&self, write: &Write) -> Bytes {
        let number = Number(self.built.fetch_add(1, Relaxed) + 1);
        let mut event = Vec::from(BEGIN);
        write(number, &mut event);
        event.extend_from_slice(END.as_bytes());
        event.into()
    }

    fn viewers(&self) -> MutexGuard<'_, Viewers> {
        self.viewers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn build_snapshots(feed: Arc<Feed>, write: Write) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        feed.latest.send_replace(Some(feed.build(&write)));
    }
}

impl Viewer {
    /// The snapshots from now on. One that comes while the client still takes an earlier one is
    /// left out.
    pub(super) fn into_events(self) -> impl Stream<Item = Bytes> {
        stream::unfold(self, |mut viewer| async move {
            loop {
                viewer.latest.changed().await.ok()?;
                let event = viewer.latest.borrow_and_update().clone();
                if let Some(event) = event {
                    return Some((event, viewer));
                }
            }
        })
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let mut viewers = self.feed.viewers();
        viewers.count -= 1;
        if viewers.count == 0 {
            viewers.building = None;
        }
    }
}
