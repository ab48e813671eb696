//! `bucket`: by request length, so that short prompts do not wait behind long ones.

mod boundaries;
mod policy;

pub(crate) use policy::Bucket;
