//! Workers that are pods of a Kubernetes cluster: listed, then watched.

mod desired;
mod endpoint_slice;
mod follow;
mod misfit;
mod pod;
mod pods;
mod rules;
mod source;
#[cfg(test)]
mod tests;
mod trouble;
mod watch;

pub(super) use source::Kubernetes;
