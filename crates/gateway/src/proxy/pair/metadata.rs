//! What both engines of a pair are given beside the client's request.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use uuid::Uuid;

use super::prefill::Keep;
use super::rooms::Rooms;
use crate::fleet::Worker;
use crate::proxy::body_fields::{OpenBody, Opening};
use crate::proxy::rank_fields::write_rank;

/// The workers of a pair.
pub(super) struct PairWorkers {
    pub(super) prefill: Arc<Worker>,
    pub(super) decode: Arc<Worker>,
}

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

/// The fields of one attempt: where decode finds prefill, and by which ids it can be ended.
#[derive(Debug)]
pub(super) struct Metadata {
    /// The bodies: the client's fields, in two parts, and those of the gateway.
    pub(super) prefill: [Bytes; 3],
    pub(super) decode: [Bytes; 3],
    /// The request's ids at both engines.
    pub(super) rids: Vec<String>,
}

impl Metadata {
    /// For an attempt with these workers. Scalars serve a batch, too: engines count rooms and ids on
    /// (`managers/io_struct.py`).
    pub(super) fn new(
        source: &OpenBody,
        workers: &PairWorkers,
        rooms: &Rooms,
        ids: Ids,
        keep: Keep,
    ) -> Self {
        let PairWorkers { prefill, decode } = workers;
        let prompts = source.listed.unwrap_or(1);
        let endpoint = &prefill.endpoint;
        let port = endpoint.config.load().spec.bootstrap_port;
        let port = port.unwrap_or_else(|| endpoint.model_info.load().bootstrap_port());
        let ranks = prefill.rank().map(|rank| (rank, endpoint.ranks()));
        let room = match ranks {
            None => rooms.reserve(prompts),
            // A prefill engine derives the rank from the room, unless another one is named.
            Some((rank, of)) => {
                let first = rooms.reserve(prompts + of);
                let (rank, of) = (rank as u64, of as u64);
                first + (rank + of - first % of) % of
            }
        };
        let host = Value::from(endpoint.url.host());
        let mut fields = Vec::with_capacity(160);
        // Writing to memory does not fail.
        let _ = write!(
            fields,
            r#""bootstrap_host":{host},"bootstrap_port":{port},"bootstrap_room":{room}"#
        );
        let fresh = source.rids.is_empty() || ids == Ids::Fresh;
        let rids = match &*source.rids {
            _ if fresh => write_rid(&mut fields, source),
            [rid] => counted(rid, source.listed),
            rids => rids.to_vec(),
        };
        if let Some((rank, _)) = ranks {
            let _ = write!(fields, r#","disagg_prefill_dp_rank":{rank}"#);
        }
        let kept = keep == Keep::Answer;
        let unstreamed = source.unstreamed.as_deref().filter(|_| kept);
        let body = |worker: &Worker, source: &OpenBody, last: &str| {
            let Opening { parts, comma } = if fresh {
                source.opening_without_rids()
            } else {
                source.opening()
            };
            let mut tail = Vec::with_capacity(fields.len() + 80);
            tail.extend_from_slice(comma.as_bytes());
            tail.extend_from_slice(&fields);
            write_rank(&mut tail, ",", worker);
            tail.extend_from_slice(last.as_bytes());
            let [start, end] = parts;
            [start, end, tail.into()]
        };
        // What is kept of the prefill worker's answer must come whole.
        let last = match keep {
            Keep::Answer => r#","stream":false}"#,
            Keep::Nothing => "}",
        };
        Self {
            prefill: body(prefill, unstreamed.unwrap_or(source), last),
            decode: body(decode, source, "}"),
            rids,
        }
    }
}

/// Adds an id of the gateway's; the ids that engines make of it.
fn write_rid(tail: &mut Vec<u8>, source: &OpenBody) -> Vec<String> {
    let rid = Uuid::new_v4().simple();
    let _ = write!(tail, r#","rid":"{rid}""#);
    counted(&rid.to_string(), source.listed)
}

/// The ids that an engine makes of one: it counts where prompts are listed, even if there is one.
fn counted(rid: &str, listed: Option<usize>) -> Vec<String> {
    match listed {
        None => vec![rid.to_owned()],
        Some(prompts) => (0..prompts).map(|at| format!("{rid}_{at}")).collect(),
    }
}
