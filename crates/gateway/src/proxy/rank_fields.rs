//! The fields that send a request to a data-parallel rank.

use std::io::Write;

use crate::fleet::Worker;

/// Adds the rank of a worker, if it is one, to the end of a body, behind `comma`. Engines have
/// called the field `data_parallel_rank` before.
pub(super) fn write_rank(text: &mut Vec<u8>, comma: &str, worker: &Worker) {
    let Some(rank) = worker.rank() else { return };
    // Writing to memory does not fail.
    let _ = write!(text, r#"{comma}"routed_dp_rank":{rank}"#);
    if !worker.endpoint.model_info.load().takes_routed_rank() {
        let _ = write!(text, r#","data_parallel_rank":{rank}"#);
    }
}
