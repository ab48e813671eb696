//! The page, the stream of snapshots that it reads, and one snapshot for scripts.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderName, header};
use serde_json::json;
use tokio::time::sleep;

use super::feed::Write;
use super::{page, snapshot};
use crate::api::routes::Routes;
use crate::api::state::{ApiState, Caller};
use crate::auth::Access;
use crate::error::Error;
use crate::shutdown::Shutdown;

/// A stream ends after so long and the viewer begins another one: rights are checked again, and no
/// stream is among the requests of five minutes and more, which are taken to be stuck.
const LONGEST_STREAM: Duration = Duration::from_mins(4);
/// The word of nginx for a reply that is passed on as it comes.
const UNBUFFERED: (HeaderName, &str) = (HeaderName::from_static("x-accel-buffering"), "no");
const NOT_STORED: (HeaderName, &str) = (header::CACHE_CONTROL, "no-store");
const NOT_SNIFFED: (HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");

pub(crate) fn routes() -> Routes {
    Routes::default()
        .get("/debug/fleet", Access::Info, page)
        .get("/debug/fleet.json", Access::Control, one_snapshot)
        .get("/debug/fleet/stream", Access::Control, stream_snapshots)
}

/// The page. It holds no data, so it needs no key: it asks for one.
async fn page() -> Response {
    let mut response = Body::from(page::HTML).into_response();
    response.headers_mut().extend(page::headers());
    response
}

/// The fleet now, or a moment ago: clients that ask at about the same time get the same one.
async fn one_snapshot(State(state): State<ApiState>) -> Result<Response, Error> {
    let feed = Arc::clone(&state.feed);
    let json = feed.json(&state.client, &writing(&state)).await;
    // `None` only when the gateway ends.
    let json = json.ok_or(Error::NoWorkerResponse)?;
    let kind = (header::CONTENT_TYPE, "application/json");
    Ok(([kind, NOT_STORED, NOT_SNIFFED], json).into_response())
}

/// A snapshot each second as server-sent events, behind one that says what the viewer may do.
async fn stream_snapshots(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Error> {
    let viewer = state.feed.join(&state.client, &writing(&state))?;
    let hello = json!({"role": caller.principal.role()});
    let hello = Bytes::from(format!("event: viewer\ndata: {hello}\n\n"));
    let end = end_of_stream(state.shutdown);
    let first = stream::once(async { hello });
    let events = first.chain(viewer.into_events()).take_until(Box::pin(end));
    let body = Body::from_stream(events.map(Ok::<_, Error>));
    let kind = (header::CONTENT_TYPE, "text/event-stream");
    Ok(([kind, NOT_STORED, NOT_SNIFFED, UNBUFFERED], body).into_response())
}

fn writing(state: &ApiState) -> Write {
    let state = state.clone();
    Arc::new(move |number, buffer: &mut Vec<u8>| snapshot::write(&state, number, buffer))
}

/// Waits until a stream that begins now has had its time, or the gateway stops.
async fn end_of_stream(shutdown: Shutdown) {
    tokio::select! {
        () = shutdown.draining() => {}
        () = sleep(LONGEST_STREAM) => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stream_ends_after_its_time_and_at_once_when_the_gateway_stops() {
        let (begun, shutdown) = (Instant::now(), Shutdown::default());
        end_of_stream(shutdown.clone()).await;
        assert_eq!(begun.elapsed(), LONGEST_STREAM);
        shutdown.drain();
        end_of_stream(shutdown).await;
        assert_eq!(begun.elapsed(), LONGEST_STREAM);
    }
}
