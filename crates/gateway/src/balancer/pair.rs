//! A prefill worker and a decode worker for one request.

use std::collections::BTreeSet;

use routing::{Candidate, Request};

use super::select_error::SelectError;
use super::snapshot::{Snapshot, Target, WorkerPool};
use super::view::{Selection, View};
use crate::endpoint::Servers;
use crate::fleet::Role;

/// Which workers a request goes to.
pub(super) enum Route<'a> {
    One(Role, &'a WorkerPool),
    Pair {
        prefill: &'a WorkerPool,
        decode: &'a WorkerPool,
    },
}

/// Where a request goes, and where else it may go when that has no worker for it.
pub(super) struct Routes<'a> {
    pub(super) first: Route<'a>,
    pub(super) other: Option<Route<'a>>,
}

impl<'a> From<Route<'a>> for Routes<'a> {
    fn from(first: Route<'a>) -> Self {
        Self { first, other: None }
    }
}

/// The pools for a request, by its model and by what answers it.
///
/// # Errors
/// When it names none of several models, one that is not served, or one whose workers do not
/// answer it.
pub(super) fn route<'a>(
    snapshot: &'a Snapshot,
    request: &Request<'_>,
    servers: Servers,
    target: Option<&Target>,
) -> Result<Routes<'a>, SelectError> {
    if let Some(target) = target {
        return route_to(snapshot, request, servers, target.as_ref()).map(Routes::from);
    }
    let regular = snapshot.pool(Role::Regular, request);
    if !snapshot.has_pairs {
        return regular.map(|pool| Route::One(Role::Regular, pool).into());
    }
    if let Err(error @ (SelectError::MissingModel | SelectError::UnknownModel)) = regular {
        return Err(error);
    }
    let regular = regular.ok().filter(|pool| !pool.is_empty());
    let of = |role| snapshot.pool(role, request);
    match servers {
        Servers::Regular => match regular {
            Some(pool) => Ok(Route::One(Role::Regular, pool).into()),
            None if of(Role::Decode).is_ok_and(|pool| !pool.is_empty()) => {
                Err(SelectError::OnlyPairs)
            }
            None => Err(SelectError::NoneReady),
        },
        Servers::Any => {
            let roles = [Role::Regular, Role::Decode, Role::Prefill].into_iter();
            let mut pools = roles.filter_map(|role| Some((role, of(role).ok()?)));
            let found = pools.find(|(_, pool)| !pool.is_empty());
            let (role, pool) = found.ok_or(SelectError::NoneReady)?;
            Ok(Route::One(role, pool).into())
        }
        Servers::Generating => {
            let (prefill, decode) = (of(Role::Prefill), of(Role::Decode));
            match (regular, prefill, decode) {
                (Some(regular), Ok(prefill), Ok(decode))
                    if !prefill.is_empty() && !decode.is_empty() =>
                {
                    // Each gets requests as it has workers.
                    let pairs = prefill.count() + decode.count();
                    let drawn = request.rng().index(regular.count() + pairs);
                    let pair = Route::Pair { prefill, decode };
                    let one = Route::One(Role::Regular, regular);
                    let (first, other) = if drawn < pairs {
                        (pair, one)
                    } else {
                        (one, pair)
                    };
                    let other = Some(other);
                    Ok(Routes { first, other })
                }
                (Some(regular), _, _) => Ok(Route::One(Role::Regular, regular).into()),
                (None, prefill, decode) => {
                    let (prefill, decode) = (prefill?, decode?);
                    Ok(Route::Pair { prefill, decode }.into())
                }
            }
        }
    }
}

/// The same where the client names a worker: its partner is of any model.
fn route_to<'a>(
    snapshot: &'a Snapshot,
    request: &Request<'_>,
    servers: Servers,
    target: Option<&(Role, Vec<Candidate>)>,
) -> Result<Route<'a>, SelectError> {
    let pool = |role| {
        let pool = snapshot.pool(role, request);
        pool.unwrap_or(&snapshot.of(role).any_model)
    };
    match (target, servers) {
        (Some((role @ (Role::Prefill | Role::Decode), _)), Servers::Any) => {
            Ok(Route::One(*role, pool(*role)))
        }
        (Some((Role::Prefill | Role::Decode, _)), Servers::Generating) => Ok(Route::Pair {
            prefill: pool(Role::Prefill),
            decode: pool(Role::Decode),
        }),
        (Some((Role::Prefill | Role::Decode, _)), Servers::Regular) => Err(SelectError::OnlyPairs),
        (Some((Role::Regular, _)) | None, _) => Ok(Route::One(Role::Regular, pool(Role::Regular))),
    }
}

/// Selects a pair and counts the request at both of its workers. The policy of prefill workers
/// weighs the prompt; then the policy of decode workers chooses among those that may be paired
/// with that one.
pub(super) fn select(
    prefill: &View<'_>,
    decode: &View<'_>,
    tried: &[usize],
) -> Result<Selection, SelectError> {
    let snapshot = prefill.snapshot;
    let group = |candidate: &Candidate| snapshot.group(candidate.slot);
    // Before a share of a prefill worker is taken: to give it back would wake the queue for nothing.
    let mut decode_from = decode.candidates(tried, None)?;
    let grouped = snapshot.has_groups();
    let partners: BTreeSet<_> = if grouped {
        decode_from.iter().map(group).collect()
    } else {
        BTreeSet::new()
    };
    let has_partner = |candidate: &Candidate| partners.contains(&group(candidate));
    let eligible: Option<&dyn Fn(&Candidate) -> bool> = grouped.then_some(&has_partner);
    let mut prefill_from = prefill.candidates(tried, eligible)?;
    let zones = &snapshot.zones;
    if zones.are_used() {
        zones.price_lonely(prefill_from.to_mut(), &decode_from);
    }
    let chosen = prefill.select(prefill_from)?;
    if zones.are_used() {
        zones.price_partners(chosen.in_flight.worker.slot, decode_from.to_mut());
    }
    if grouped {
        let own = snapshot.group(chosen.in_flight.worker.slot);
        decode_from
            .to_mut()
            .retain(|candidate| group(candidate) == own);
    }
    let mut pair = decode.select(decode_from)?;
    pair.prefill = Some(Box::new(chosen));
    Ok(pair)
}
