//! What holds for every body that describes a worker.

use super::body::{Fields, read, url};
use crate::config::WorkerUrl;
use crate::fleet::{Labels, WorkerSpec};

/// A body that is accepted changes nothing when it is sent again.
///
/// # Panics
/// If it does.
pub fn worker_body(data: &[u8]) {
    let Ok(fields) = serde_json::from_slice::<Fields>(data) else {
        return;
    };
    let named = url(&fields).ok();
    let Some(known) = named
        .clone()
        .or_else(|| WorkerUrl::parse("http://w:1").ok())
    else {
        return;
    };
    // Normalised once, it stays as it is.
    assert_eq!(WorkerUrl::parse(known.as_str()).as_ref(), Ok(&known));
    let reported = Labels::from([
        ("model_id".to_owned(), "m".to_owned()),
        ("tp_size".to_owned(), "2".to_owned()),
    ]);
    let before = WorkerSpec::new(known);
    let Ok(once) = read(&fields, &before, &reported) else {
        return;
    };
    let twice = read(&fields, &once, &reported);
    assert_eq!(twice.ok().as_ref(), Some(&once));
}
