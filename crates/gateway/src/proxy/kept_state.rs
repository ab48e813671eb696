//! The worker that a request must go to, because it keeps what the request names.

use http::HeaderMap;

use super::broadcast::locate;
use super::dispatcher::Dispatcher;
use super::owners::{Kind, Owner, StateId, gone};
use super::request::RequestContext;
use crate::error::Error;

/// The id of the worker that keeps what a request names; `None` where any worker will do.
///
/// # Errors
/// When that worker is gone.
pub(super) async fn owner_of(
    dispatcher: &Dispatcher,
    context: RequestContext<'_>,
    headers: &HeaderMap,
    state: StateId<'_>,
) -> Result<Option<String>, Error> {
    let worker = match dispatcher.owners.find(&dispatcher.balancer.fleet, &state) {
        Owner::Known(worker) => worker,
        Owner::Gone => return Err(gone(&state)),
        // Sessions cannot be asked for.
        Owner::Unknown if state.kind == Kind::Session => return Ok(None),
        Owner::Unknown => {
            let Some(found) = locate(dispatcher, context, headers, &state.id).await else {
                // Whichever worker gets it says that it is not known.
                return Ok(None);
            };
            dispatcher.owners.keep(state.kind, &state.id, &found);
            found
        }
    };
    Ok(Some(worker.id.to_string()))
}
