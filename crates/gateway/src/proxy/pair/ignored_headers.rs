//! An engine that does not obey the headers of its leg: it has been started anew without that, or
//! never did.

use std::time::Duration;

use http::StatusCode;
use memchr::memmem;
use routing::Outcome;
use tracing::warn;

use super::prefill::first_failure;
use crate::error::Error;
use crate::fleet::{Overrides, Worker};
use crate::proxy::worker_call::Answer;

/// What SGLang says of a request in whose body there is no room.
const NO_ROOM: &str = "without bootstrap room id";
/// Most of a refusal that is looked at, bytes.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;
/// Longest wait for that.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Looks at how a leg ended whose room was in its head. Where the engine has not read that, the
/// client is not at fault, and nothing has been computed: the request is tried again.
pub(super) async fn notice(worker: &Worker, outcome: &mut Outcome, answer: &mut Answer) {
    if !lacks_room(answer).await {
        return;
    }
    let before = worker.endpoint.header_overrides.set(Overrides::Ignored);
    if before != Overrides::Ignored {
        warn!(worker = %worker.url(), "worker ignores x-override-* headers");
    }
    *outcome = Outcome::Local;
    *answer = Err(Error::PairFailed {
        worker: worker.url().to_string(),
        status: StatusCode::SERVICE_UNAVAILABLE,
        message: "the engine ignores x-override-* headers \
                  (SGLANG_ENABLE_REQUEST_HEADER_OVERRIDES)"
            .to_owned(),
    });
}

async fn lacks_room(answer: &mut Answer) -> bool {
    let Ok(response) = answer else { return false };
    if let Some((status, message)) = first_failure(response) {
        return status == 400 && message.contains(NO_ROOM);
    }
    if response.status() != StatusCode::BAD_REQUEST {
        return false;
    }
    let body = response.body_mut();
    let why = body.read_ahead(MAX_REFUSAL_BYTES, REFUSAL_TIMEOUT).await;
    memmem::find(why, NO_ROOM.as_bytes()).is_some()
}
