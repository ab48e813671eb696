//! Selecting a worker, or a pair of them, for one request.

use std::sync::Arc;

use routing::Request;

use super::balancer::Balancer;
use super::grant::Grant;
use super::pair::{self, Route};
use super::select_error::SelectError;
use super::view::{Selection, View};
use crate::endpoint::Servers;
use crate::fleet::Role;

/// What narrows the choice for a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Constraints<'a> {
    /// The client's `X-SMG-Target-Worker`: a worker's index, URL or id.
    pub(crate) target: Option<&'a str>,
    /// Slots of workers where the request has failed.
    pub(crate) tried: &'a [usize],
    /// Which workers answer what is asked.
    pub(crate) servers: Servers,
    /// The models of a client that may not use all.
    pub(crate) grant: Option<&'a Grant<'a>>,
}

/// Times a request looks at the fleet when others take its share.
const MAX_RACES: usize = 8;

/// Selects a worker and counts the request there.
pub(crate) fn select(
    balancer: &Arc<Balancer>,
    request: &Request<'_>,
    constraints: Constraints<'_>,
) -> Result<Selection, SelectError> {
    let mut selection = try_select(balancer, request, constraints);
    for _ in 0..MAX_RACES {
        match selection {
            // The snapshot was out of date.
            Err(SelectError::Raced) => selection = try_select(balancer, request, constraints),
            selection => return selection,
        }
    }
    selection
}

fn try_select(
    balancer: &Arc<Balancer>,
    request: &Request<'_>,
    constraints: Constraints<'_>,
) -> Result<Selection, SelectError> {
    let snapshot = balancer.snapshot();
    let target = constraints.target.map(|target| snapshot.find(target));
    if let Some(grant) = constraints.grant
        && !grant.allows(&snapshot, request, target.as_ref())
    {
        return Err(SelectError::NotGranted);
    }
    let routes = pair::route(&snapshot, request, constraints.servers, target.as_ref())?;
    let view = |role, pool| View {
        balancer,
        snapshot: &snapshot,
        role,
        pool,
        request,
        target: target.as_ref(),
    };
    let along = |route| match route {
        Route::One(role, pool) => {
            let view = view(role, pool);
            view.select(view.candidates(constraints.tried, None)?)
        }
        Route::Pair { prefill, decode } => {
            let (prefill, decode) = (view(Role::Prefill, prefill), view(Role::Decode, decode));
            pair::select(&prefill, &decode, constraints.tried)
        }
    };
    match (along(routes.first), routes.other) {
        (Err(first), Some(other)) => along(other).map_err(|second| match second {
            // Worth a wait.
            SelectError::AtCapacity => second,
            _ => first,
        }),
        (selected, _) => selected,
    }
}
