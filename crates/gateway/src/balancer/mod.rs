//! Which worker gets a request, and what its end says about the worker.

#[expect(clippy::module_inception, reason = "the type that the module is about")]
mod balancer;
mod feedback;
mod in_flight;
mod model_names;
mod model_policies;
mod placement;
mod select_error;
mod snapshot;
#[cfg(test)]
mod tests;
mod text_ratios;

pub(crate) use balancer::Balancer;
pub(crate) use feedback::record_blame;
pub(crate) use in_flight::{FirstByte, InFlight};
pub(crate) use model_policies::ModelPolicies;
pub(crate) use placement::{Constraints, Selection, select};
pub(crate) use select_error::SelectError;
