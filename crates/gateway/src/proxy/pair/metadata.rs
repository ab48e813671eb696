//! What both engines of a pair are given beside the client's request.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use uuid::Uuid;

use super::prefill::Keep;
use super::rooms::Rooms;
use crate::fleet::Worker;
use crate::proxy::body_fields::OpenBody;
use crate::proxy::rank_fields::write_rank;

/// The workers of a pair.
pub(super) struct PairWorkers {
    pub(super) prefill: Arc<Worker>,
    pub(super) decode: Arc<Worker>,
}

/// The fields of one attempt: where decode finds prefill, and by which ids it can be ended.
#[derive(Debug)]
pub(super) struct Metadata {
    /// The ends of both bodies, their closing braces included.
    pub(super) prefill_tail: Bytes,
    pub(super) decode_tail: Bytes,
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
        keep: Keep,
        attempts: u32,
    ) -> Self {
        let PairWorkers { prefill, decode } = workers;
        let endpoint = &prefill.endpoint;
        let port = endpoint.config.load().spec.bootstrap_port;
        let port = port.unwrap_or_else(|| endpoint.model_info.load().bootstrap_port());
        let ranks = prefill.rank().map(|rank| (rank, endpoint.ranks()));
        let room = match ranks {
            None => rooms.reserve(source.prompts),
            // A prefill engine derives the rank from the room, unless another one is named.
            Some((rank, of)) => {
                let first = rooms.reserve(source.prompts + of);
                let (rank, of) = (rank as u64, of as u64);
                first + (rank + of - first % of) % of
            }
        };
        let host = Value::from(endpoint.url.host());
        let mut tail = Vec::with_capacity(160);
        // Writing to memory does not fail.
        let _ = write!(
            tail,
            r#""bootstrap_host":{host},"bootstrap_port":{port},"bootstrap_room":{room}"#
        );
        // Another attempt would meet what is left of the one before under the client's id.
        let rids = if source.rids.is_empty() || attempts > 0 {
            let rid = Uuid::new_v4().simple();
            let _ = write!(tail, r#","rid":"{rid}""#);
            counted(&rid.to_string(), source.prompts)
        } else if let [rid] = &*source.rids {
            counted(rid, source.prompts)
        } else {
            source.rids.clone()
        };
        if let Some((rank, _)) = ranks {
            let _ = write!(tail, r#","disagg_prefill_dp_rank":{rank}"#);
        }
        let of_leg = |worker: &Worker, last: &str| {
            let mut tail = tail.clone();
            write_rank(&mut tail, worker);
            tail.extend_from_slice(last.as_bytes());
            Bytes::from(tail)
        };
        // What is kept of the prefill worker's answer must come whole.
        let last = match keep {
            Keep::Answer => r#","stream":false}"#,
            Keep::Nothing => "}",
        };
        Self {
            prefill_tail: of_leg(prefill, last),
            decode_tail: of_leg(decode, "}"),
            rids,
        }
    }
}

/// The ids that an engine makes of one for a batch.
fn counted(rid: &str, prompts: usize) -> Vec<String> {
    if prompts < 2 {
        return vec![rid.to_owned()];
    }
    (0..prompts).map(|at| format!("{rid}_{at}")).collect()
}
