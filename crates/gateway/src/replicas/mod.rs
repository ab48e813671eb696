//! Other gateways in front of the same workers: what this one publishes, and takes over from them.
//!
//! Rate limits and routing keys are other matters, with connections and tasks of their own:
//! [`quotas`], [`keys`].
//!
//! All of it happens on the control thread. A lane only notes a placement in the policy's journal,
//! and reads loads that others have set. Without the shared state, or when it is slow, gateways go
//! on with what they know.

mod directory;
mod exchange;
mod filling;
mod key_link;
#[cfg(test)]
mod key_tests;
mod keys;
mod link;
mod queue_shares;
mod quota_link;
#[cfg(test)]
mod quota_tests;
mod quotas;
mod rate_shares;
mod redis_keys;
mod redis_link;
mod redis_quotas;
mod redis_server;
mod shares;
mod slot_shares;
mod status;
#[cfg(test)]
mod test_server;
#[cfg(test)]
mod tests;
mod warm_up;
mod worker_slots;

pub(crate) use exchange::{Exchange, Leaving, Replicas};
pub(crate) use keys::{KeyParts, Keys};
pub(crate) use quotas::{QuotaParts, Quotas};
pub(crate) use redis_link::RedisConnector;
pub(crate) use status::ReplicaStatus;
