//! Which workers a call goes to.

use std::sync::Arc;

use super::extract::parameter;
use super::state::ApiState;
use crate::error::Error;
use crate::fleet::Worker;

/// Query parameters that name workers.
pub(super) const SCOPE: [&str; 2] = ["model", "worker"];

/// The workers that a query names; all that are not leaving if it names none.
pub(super) fn scope(state: &ApiState, query: Option<&str>) -> Result<Vec<Arc<Worker>>, Error> {
    let (model, named) = (parameter(query, "model"), parameter(query, "worker"));
    let workers = state.fleet.servers();
    let mut workers: Vec<_> = workers.iter().filter(|it| !it.is_draining()).collect();
    if workers.is_empty() {
        return Err(Error::NoWorkers);
    }
    if let Some(model) = model {
        workers.retain(|worker| worker.endpoint.model_info.load().model == model);
        if workers.is_empty() {
            let served = state.balancer.served_models(None).join(", ");
            return Err(Error::ModelNotFound { model, served });
        }
    }
    if let Some(named) = named {
        let at_url = state.fleet.find(&named);
        let is = |worker: &&Arc<Worker>| {
            worker.has_id(&named) || at_url.as_ref().is_some_and(|it| it.id == worker.id)
        };
        workers.retain(is);
        if workers.is_empty() {
            return Err(Error::WorkerNotFound(named));
        }
    }
    Ok(workers.into_iter().cloned().collect())
}
