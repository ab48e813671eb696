//! What both engines of a pair are given beside the client's request.

use bytes::Bytes;
use uuid::Uuid;

use super::form::Form;
use super::pair_workers::PairWorkers;
use super::prefill::Keep;
use super::rooms::Rooms;
use super::values::Values;
use crate::fleet::Worker;
use crate::proxy::body_fields::{OpenBody, Opening};
use crate::proxy::rank_fields::write_rank;
use crate::upstream::Line;

/// Most ids of a request that are aborted at an engine.
const MAX_IDS: usize = 1024;

/// Which ids the request has at the engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ids {
    /// The client's, where it gives some.
    Clients,
    /// New ones. An engine that still has the attempt before refuses its ids, and an abort of that
    /// one would end this one, too.
    Fresh,
}

impl Ids {
    /// After so many attempts.
    pub(super) fn of_attempt(attempts: u32) -> Self {
        if attempts == 0 {
            Self::Clients
        } else {
            Self::Fresh
        }
    }
}

/// How one attempt is made.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) ids: Ids,
    pub(super) keep: Keep,
    pub(super) form: Form,
}

/// What one worker of an attempt gets.
#[derive(Debug)]
pub(super) struct LegParts {
    /// Lines of its head, where the values are there.
    pub(super) lines: Vec<Line>,
    /// The client's fields, in two parts, and those of the gateway.
    pub(super) body: [Bytes; 3],
}

/// What both workers of an attempt get.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) prefill: LegParts,
    pub(super) decode: LegParts,
    /// The request's ids at both engines, of a long list of prompts the first ones: further prompts
    /// end when their engine notices that the connection is closed.
    pub(super) rids: Vec<String>,
}

impl Metadata {
    /// For an attempt with these workers. Scalars serve a batch, too: engines count rooms and ids on
    /// (`managers/io_struct.py`).
    pub(super) fn new(
        source: &OpenBody,
        workers: &PairWorkers,
        rooms: &Rooms,
        terms: &Terms,
    ) -> Self {
        let fresh = source.rids.is_empty() || terms.ids == Ids::Fresh;
        let rid = fresh.then(|| Uuid::new_v4().simple().to_string());
        let rids = match (&rid, &*source.rids) {
            (Some(rid), _) | (None, [rid]) => counted(rid, source.listed),
            (None, rids) => rids.iter().take(MAX_IDS).cloned().collect(),
        };
        let values = Values::new(source, &workers.prefill, rooms, rid);
        let by_headers = match &terms.form {
            Form::Headers(whole) => LegParts::in_headers(&values, whole, workers),
            Form::Body => None,
        };
        let by_body = || LegParts::in_bodies(&values, source, workers, terms.keep);
        let [prefill, decode] = by_headers.unwrap_or_else(by_body);
        Self {
            prefill,
            decode,
            rids,
        }
    }
}

impl LegParts {
    /// As headers of both legs, beside the client's body. `None` where they fit into none.
    fn in_headers(values: &Values<'_>, whole: &Bytes, workers: &PairWorkers) -> Option<[Self; 2]> {
        let leg = |worker: &Worker| {
            Some(Self {
                lines: values.lines(worker.rank())?,
                body: [whole.clone(), Bytes::new(), Bytes::new()],
            })
        };
        Some([leg(&workers.prefill)?, leg(&workers.decode)?])
    }

    /// At the ends of both bodies.
    fn in_bodies(
        values: &Values<'_>,
        source: &OpenBody,
        workers: &PairWorkers,
        keep: Keep,
    ) -> [Self; 2] {
        let fields = values.fields();
        let leg = |worker: &Worker, source: &OpenBody, last: &str| {
            let Opening { parts, comma } = match values.rid {
                Some(_) => source.opening_without_rids(),
                None => source.opening(),
            };
            let mut tail = Vec::with_capacity(fields.len() + 80);
            tail.extend_from_slice(comma.as_bytes());
            tail.extend_from_slice(&fields);
            write_rank(&mut tail, ",", worker);
            tail.extend_from_slice(last.as_bytes());
            let [start, end] = parts;
            Self {
                lines: Vec::new(),
                body: [start, end, tail.into()],
            }
        };
        // What is kept of the prefill worker's answer must come whole.
        let (of_prefill, last) = match keep {
            Keep::Answer => (source.unstreamed.as_deref(), r#","stream":false}"#),
            Keep::Nothing => (None, "}"),
        };
        [
            leg(&workers.prefill, of_prefill.unwrap_or(source), last),
            leg(&workers.decode, source, "}"),
        ]
    }
}

/// The ids that an engine makes of one: it counts where prompts are listed, even if there is one.
fn counted(rid: &str, listed: Option<usize>) -> Vec<String> {
    match listed {
        None => vec![rid.to_owned()],
        Some(prompts) => (0..prompts.min(MAX_IDS))
            .map(|at| format!("{rid}_{at}"))
            .collect(),
    }
}
