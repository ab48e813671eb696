//! Which worker keeps what: stored responses and sessions live at the worker that made them.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Response;
use lru::LruCache;
use memchr::memmem;
use uuid::Uuid;

use crate::endpoint::State;
use crate::error::Error;
use crate::fleet::{Fleet, Worker};
use crate::upstream::{ResponseBody, UpstreamError};

/// Memory of all names, bytes.
const BUDGET: usize = 16 * 1024 * 1024;
/// What an entry takes besides its name, bytes.
const OVERHEAD: usize = 128;
/// A longer name is none of SGLang's, bytes.
const MAX_ID: usize = 512;
/// Most of a reply that is read for the name in it, bytes.
const MAX_AHEAD: usize = 4096;
/// Longest wait for that.
const AHEAD_TIMEOUT: Duration = Duration::from_secs(1);

/// The kinds of things that one worker keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Response,
    Session,
}

/// The name of something that one worker keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StateId<'a> {
    pub(super) kind: Kind,
    pub(super) id: Cow<'a, str>,
}

/// Where something is kept.
#[derive(Clone, Debug)]
pub(super) enum Owner {
    Known(Arc<Worker>),
    /// The worker has left, or lost what it kept.
    Gone,
    Unknown,
}

/// The workers that keep what clients name. The names used last stay.
#[derive(Debug)]
pub(super) struct Owners(Mutex<Map>);

#[derive(Debug)]
struct Map {
    owners: LruCache<(Kind, Box<str>), Uuid>,
    /// What all names take.
    bytes: usize,
}

impl Default for Owners {
    fn default() -> Self {
        let owners = LruCache::unbounded();
        Self(Mutex::new(Map { owners, bytes: 0 }))
    }
}

impl Owners {
    /// Which worker keeps something.
    pub(super) fn find(&self, fleet: &Fleet, state: &StateId<'_>) -> Owner {
        let key = (state.kind, Box::from(&*state.id));
        let Some(owner) = self.lock().owners.get(&key).copied() else {
            return Owner::Unknown;
        };
        let workers = fleet.workers();
        let worker = workers.iter().find(|worker| worker.id == owner);
        match worker.filter(|worker| worker.is_ready()) {
            Some(worker) => Owner::Known(Arc::clone(worker)),
            None => Owner::Gone,
        }
    }

    /// A worker keeps something from now on.
    pub(super) fn keep(&self, kind: Kind, id: &str, worker: &Worker) {
        if id.is_empty() || id.len() > MAX_ID {
            return;
        }
        let mut map = self.lock();
        let before = map.owners.put((kind, Box::from(id)), worker.id);
        if before.is_none() {
            map.bytes += id.len() + OVERHEAD;
        }
        while map.bytes > BUDGET
            && let Some(((_, id), _)) = map.owners.pop_lru()
        {
            map.bytes -= id.len() + OVERHEAD;
        }
    }

    /// Learns from the beginning of a worker's reply what it keeps.
    ///
    /// # Errors
    /// When the reply breaks off there.
    pub(super) async fn learn(
        &self,
        state: State,
        response: &mut Response<ResponseBody>,
        worker: &Worker,
    ) -> Result<(), UpstreamError> {
        let kind = match state {
            State::Responses => Kind::Response,
            State::OpensSession => Kind::Session,
            State::None | State::ClosesSession => return Ok(()),
        };
        if !response.status().is_success() {
            return Ok(());
        }
        let body = response.body_mut();
        // Of a stream the first event has been read: more of it must not be waited for.
        if body.ahead().is_none() {
            let names = |read: &[u8]| id_in(kind, read).is_some();
            body.read_on(names, MAX_AHEAD, AHEAD_TIMEOUT).await?;
        }
        if let Some(id) = body.ahead().and_then(|read| id_in(kind, read)) {
            self.keep(kind, &id, worker);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Map> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of a request for something that its worker has taken along.
pub(super) fn gone(state: &StateId<'_>) -> Error {
    Error::StateNotFound {
        what: match state.kind {
            Kind::Response => "response",
            Kind::Session => "session",
        },
        id: state.id.clone().into_owned(),
    }
}

/// The name in the beginning of a reply: the first `id` of a response, be it the body or its first
/// event; the string that opening a session gives.
fn id_in(kind: Kind, reply: &[u8]) -> Option<String> {
    match kind {
        Kind::Session => serde_json::from_slice(reply).ok(),
        Kind::Response => memmem::find_iter(reply, b"\"id\"").find_map(|at| {
            let value = reply[at + 4..].trim_ascii_start();
            let value = value.strip_prefix(b":")?.trim_ascii_start();
            let mut values = serde_json::Deserializer::from_slice(value).into_iter::<String>();
            let id = values.next()?.ok()?;
            id.starts_with("resp").then_some(id)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_found_in_bodies_and_first_events() {
        for (reply, id) in [
            (r#"{"id":"resp_1","object":"response"}"#, Some("resp_1")),
            (
                r#"{ "model":"m", "id" : "resp_\u0031", "out"#,
                Some("resp_1"),
            ),
            (
                "event: response.created\ndata: {\"response\":{\"id\":\"resp_2\"}}\n\n",
                Some("resp_2"),
            ),
            (
                r#"{"output":[{"id":"msg_1"}],"id":"resp_3"}"#,
                Some("resp_3"),
            ),
            (r#"{"id":7}"#, None),
            (r#"{"id":"resp_cut"#, None),
            ("", None),
        ] {
            assert_eq!(
                id_in(Kind::Response, reply.as_bytes()).as_deref(),
                id,
                "{reply}"
            );
        }
        assert_eq!(id_in(Kind::Session, b"\"s1\"").as_deref(), Some("s1"));
        assert_eq!(id_in(Kind::Session, b"{}"), None);
    }
}
