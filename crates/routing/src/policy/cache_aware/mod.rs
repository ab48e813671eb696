//! `cache_aware`: the lowest predicted cost, from cached prefixes, queues and congestion.

mod congestion;
mod decode;
#[cfg(test)]
mod plain_rule;
mod policy;
mod replication;
mod tie;
mod unseen;

pub use congestion::CongestionFactor;
pub(crate) use policy::CacheAware;
pub use replication::ReplicationDiscount;
