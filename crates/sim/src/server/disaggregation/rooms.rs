//! The rooms of a bootstrap server, where the two legs of a pair meet.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use super::protocol::KvCache;

/// Rooms remembered whose decode leg was aborted before a prefill leg came.
const MAX_ABORTED: usize = 4096;

/// The decode leg of the room is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the decode leg is gone")]
pub(crate) struct PartnerGone;

/// Every room in use.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rooms: HashMap<u64, Room>,
    aborted: VecDeque<u64>,
    last_link: u64,
}

#[derive(Debug, Default)]
struct Room {
    decode: Option<DecodeEnd>,
    aborted: bool,
    prefills: usize,
    changed: Arc<Notify>,
}

/// Where the KV cache is sent to.
#[derive(Debug)]
struct DecodeEnd {
    link: u64,
    to: mpsc::UnboundedSender<KvCache>,
    served: bool, // it has a KV cache; further ones are lost
}

impl Rooms {
    /// Adds a decode leg. As in SGLang, a later one in the same room replaces it.
    pub(crate) fn join(self: &Arc<Self>, room: u64) -> Joined {
        let (to, kv_caches) = mpsc::unbounded_channel();
        let mut state = self.lock();
        state.last_link += 1;
        let link = state.last_link;
        state.aborted.retain(|aborted| *aborted != room);
        let entry = state.rooms.entry(room).or_default();
        entry.decode = Some(DecodeEnd {
            link,
            to,
            served: false,
        });
        entry.aborted = false;
        entry.changed.notify_waiters();
        drop(state);
        Joined {
            rooms: Arc::clone(self),
            room,
            link,
            kv_caches,
        }
    }

    /// Adds a prefill leg.
    pub(crate) fn enter(self: &Arc<Self>, room: u64) -> Entered {
        let mut state = self.lock();
        let was_aborted = state.aborted.contains(&room);
        state.aborted.retain(|aborted| *aborted != room);
        let entry = state.rooms.entry(room).or_default();
        entry.prefills += 1;
        entry.aborted |= was_aborted;
        let changed = Arc::clone(&entry.changed);
        drop(state);
        Entered {
            rooms: Arc::clone(self),
            room,
            changed,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Forgets a room that no leg is in.
    fn tidy(&mut self, room: u64) {
        if let Some(entry) = self.rooms.get_mut(&room)
            && entry.prefills == 0
        {
            entry.decode.take_if(|end| end.served);
        }
        let empty = |entry: &Room| entry.prefills == 0 && entry.decode.is_none();
        if self.rooms.get(&room).is_some_and(empty) {
            self.rooms.remove(&room);
        }
    }
}

/// A decode leg in its room, held by its connection.
#[derive(Debug)]
pub(crate) struct Joined {
    rooms: Arc<Rooms>,
    room: u64,
    link: u64,
    kv_caches: mpsc::UnboundedReceiver<KvCache>,
}

impl Joined {
    /// Waits for a KV cache; forever once another decode leg is in the room.
    pub(crate) async fn kv_cache(&mut self) -> KvCache {
        match self.kv_caches.recv().await {
            Some(kv) => kv,
            None => std::future::pending().await,
        }
    }

    /// Ends the leg: the prefill leg fails, even if it comes later.
    pub(crate) fn abort(self) {
        let mut state = self.rooms.lock();
        let Some(entry) = state.rooms.get_mut(&self.room) else {
            return;
        };
        if !entry.is_joined_by(self.link) {
            return;
        }
        entry.decode = None;
        entry.aborted = true;
        entry.changed.notify_waiters();
        if entry.prefills == 0 {
            if state.aborted.len() == MAX_ABORTED {
                state.aborted.pop_front();
            }
            state.aborted.push_back(self.room);
        }
    }
}

impl Room {
    fn is_joined_by(&self, link: u64) -> bool {
        self.decode.as_ref().is_some_and(|end| end.link == link)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let mut state = self.rooms.lock();
        if let Some(entry) = state.rooms.get_mut(&self.room)
            && entry.is_joined_by(self.link)
        {
            // Served, it stays for the other prefill legs of the room: SGLang serves them, too.
            entry.decode.take_if(|end| !end.served);
            entry.changed.notify_waiters();
        }
        state.tidy(self.room);
    }
}

/// A prefill leg in its room.
#[derive(Debug)]
pub(crate) struct Entered {
    rooms: Arc<Rooms>,
    room: u64,
    changed: Arc<Notify>,
}

impl Entered {
    /// Waits for a decode leg.
    pub(crate) async fn partner(&self) -> Result<(), PartnerGone> {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.rooms.lock();
                let entry = state.rooms.get(&self.room);
                if entry.is_some_and(|entry| entry.aborted) {
                    return Err(PartnerGone);
                }
                if entry.is_some_and(|entry| entry.decode.is_some()) {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    /// Waits until the decode leg is gone; forever while it stays.
    pub(crate) async fn partner_gone(&self) {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.rooms.lock();
                let entry = state.rooms.get(&self.room);
                if entry.is_none_or(|entry| entry.decode.is_none()) {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Sends the KV cache to whichever decode leg is in the room now.
    pub(crate) fn send(&self, kv: KvCache) -> Result<(), PartnerGone> {
        let mut state = self.rooms.lock();
        let entry = state.rooms.get_mut(&self.room);
        let end = entry.and_then(|entry| entry.decode.as_mut());
        let end = end.ok_or(PartnerGone)?;
        if std::mem::replace(&mut end.served, true) {
            return Ok(());
        }
        end.to.send(kv).map_err(|_| PartnerGone)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut state = self.rooms.lock();
        if let Some(entry) = state.rooms.get_mut(&self.room) {
            entry.prefills -= 1;
            if entry.prefills == 0 {
                entry.aborted = false;
            }
        }
        state.tidy(self.room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KV: KvCache = KvCache {
        room: 7,
        digest: 1,
        cached_tokens: 0,
    };

    fn rooms() -> Arc<Rooms> {
        Arc::default()
    }

    fn is_empty(rooms: &Rooms) -> bool {
        rooms.lock().rooms.is_empty()
    }

    #[tokio::test]
    async fn legs_meet_in_either_order_and_leave_no_room_behind() {
        let rooms = rooms();
        let prefill = rooms.enter(7);
        let mut decode = rooms.join(7);
        assert_eq!(prefill.partner().await, Ok(()));
        assert_eq!(prefill.send(KV), Ok(()));
        assert_eq!(decode.kv_cache().await, KV);
        drop((decode, prefill));
        assert!(is_empty(&rooms));
        let decode = rooms.join(7);
        assert_eq!(rooms.enter(7).partner().await, Ok(()));
        drop(decode);
        assert!(is_empty(&rooms));
    }

    #[tokio::test]
    async fn an_aborted_decode_leg_fails_the_prefill_leg_now_or_later() {
        let rooms = rooms();
        rooms.join(7).abort();
        assert!(is_empty(&rooms));
        assert_eq!(rooms.enter(7).partner().await, Err(PartnerGone));
        let (prefill, decode) = (rooms.enter(7), rooms.join(7));
        decode.abort();
        assert_eq!(prefill.partner().await, Err(PartnerGone));
        drop(prefill);
        let _decode = rooms.join(7);
        assert_eq!(rooms.enter(7).partner().await, Ok(()));
    }

    #[tokio::test]
    async fn the_last_decode_leg_of_a_room_gets_the_first_kv_cache() {
        let rooms = rooms();
        let (one, other) = (rooms.enter(7), rooms.enter(7));
        let (_shadowed, mut last) = (rooms.join(7), rooms.join(7));
        assert_eq!(one.send(KV), Ok(()));
        assert_eq!(last.kv_cache().await, KV);
        drop((one, last));
        assert_eq!(other.partner().await, Ok(()));
        assert_eq!(other.send(KV), Ok(()));
    }
}
