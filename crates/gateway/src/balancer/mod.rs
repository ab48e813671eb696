//! Which worker gets a request, and what its end says about the worker.

#[expect(clippy::module_inception, reason = "the type that the module is about")]
mod balancer;
mod feedback;
mod grant;
mod in_flight;
mod model_names;
mod model_policies;
mod pair;
mod placement;
mod pool_summary;
mod queues;
mod reading;
mod role_policies;
mod select_error;
mod slow_start;
mod snapshot;
#[cfg(test)]
mod tests;
mod token_stats;
mod view;
mod zones;

pub(crate) use balancer::Balancer;
pub(crate) use feedback::record_blame;
pub(crate) use grant::{Grant, NamedAdapters};
pub(crate) use in_flight::{FirstByte, InFlight};
pub(crate) use placement::{Constraints, select};
pub(crate) use pool_summary::PoolSummary;
pub(crate) use role_policies::{RoleKinds, RolePolicies};
pub(crate) use select_error::SelectError;
pub(crate) use token_stats::TokenStats;
pub(crate) use view::Selection;
