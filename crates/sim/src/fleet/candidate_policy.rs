//! The policies to compare: the gateway's own, and reference policies.

use std::sync::Arc;

use routing::replicas::Journal;
use routing::{CongestionFactor, Params, Policy, PolicyKind, TieBreak};
use thiserror::Error;

use super::options::{FleetOptions, Share};
use super::oracle_policy::{Belief, Factor, OraclePolicy};
use super::threshold_policy::ThresholdPolicy;

/// Prefixes of the reference policies' names.
const CHARGE: &str = "charge_";
const SIZED: &str = "sized_";
/// Name of the rule with thresholds.
const THRESHOLD: &str = "smg_1.13";
/// A factor that follows the load.
const AUTO: &str = "auto";

/// No policy has this name.
#[derive(Debug, Error)]
#[error(
    "unknown policy '{name}' (choose from {choices}, charge_K, sized_K, smg_1.13; K a number or auto)"
)]
pub struct UnknownPolicy {
    name: String,
    choices: String,
}

/// A policy to simulate.
#[derive(Clone, Debug)]
pub struct CandidatePolicy {
    name: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Policy(PolicyKind),
    /// `None`: the factor follows the load.
    CongestionFactor(Option<f64>),
    Sized(Option<f64>),
    Threshold,
}

impl CandidatePolicy {
    /// Every policy of the gateway.
    pub fn all() -> Vec<Self> {
        let built = PolicyKind::ALL.into_iter();
        built
            .map(|kind| Self {
                name: kind.as_str().to_owned(),
                kind: Kind::Policy(kind),
            })
            .collect()
    }

    /// A policy by name. References exist besides the gateway's policies. `charge_K` picks the
    /// lowest sum of queued tokens and K × own uncached tokens, independent of the load, and assumes
    /// unbounded caches. `sized_K` knows the exact contents of the caches. If K is `auto`, the
    /// factor is that of `cache_aware`. `smg_1.13` is that gateway's rule with its default
    /// thresholds.
    pub fn named(name: &str) -> Result<Self, UnknownPolicy> {
        let references = [
            factor(name, CHARGE).map(Kind::CongestionFactor),
            factor(name, SIZED).map(Kind::Sized),
            (name == THRESHOLD).then_some(Kind::Threshold),
        ];
        if let Some(kind) = references.into_iter().flatten().next() {
            let name = name.to_owned();
            return Ok(Self { name, kind });
        }
        let mut all = Self::all();
        match all.iter().position(|policy| policy.name == name) {
            Some(index) => Ok(all.swap_remove(index)),
            None => Err(UnknownPolicy {
                name: name.to_owned(),
                choices: all.iter().map(Self::name).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A new instance.
    pub(super) fn build(
        &self,
        options: &FleetOptions,
        journal: Option<Arc<Journal>>,
    ) -> Box<dyn Policy> {
        let params = Params {
            tie_break: match options.share {
                Share::None => TieBreak::Random,
                Share::Rendezvous | Share::Redis => TieBreak::Rendezvous,
            },
            journal,
            gateways: match options.share {
                Share::None => 1,
                Share::Rendezvous | Share::Redis => options.gateways as u32,
            },
            index_bytes: options.index_bytes,
            index_text: options.index_text(),
            ..Params::default()
        };
        let (belief, factor) = match self.kind {
            Kind::Policy(kind) => return kind.build(&params),
            Kind::Threshold => return Box::new(ThresholdPolicy::new(&params)),
            Kind::CongestionFactor(factor) => (Belief::indexed(&params), factor),
            Kind::Sized(factor) => (Belief::sized(options.cache_blocks()), factor),
        };
        let by_load = || Factor::ByLoad(CongestionFactor::default());
        Box::new(OraclePolicy::new(
            belief,
            factor.map_or_else(by_load, Factor::Fixed),
        ))
    }
}

/// The policies of both roles, as `prefill+decode`.
#[derive(Clone, Debug)]
pub struct PairPolicies {
    name: String,
    pub(super) prefill: CandidatePolicy,
    pub(super) decode: CandidatePolicy,
}

impl PairPolicies {
    /// The two policies that are named so; one name is for both roles.
    pub fn named(name: &str) -> Result<Self, UnknownPolicy> {
        let (prefill, decode) = name.split_once('+').unwrap_or((name, name));
        Ok(Self {
            name: name.to_owned(),
            prefill: CandidatePolicy::named(prefill)?,
            decode: CandidatePolicy::named(decode)?,
        })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The factor after the prefix; `None` inside: it follows the load.
#[expect(
    clippy::option_option,
    reason = "no such name, or a name without a number"
)]
fn factor(name: &str, prefix: &str) -> Option<Option<f64>> {
    let factor = name.strip_prefix(prefix)?;
    if factor == AUTO {
        return Some(None);
    }
    let factor = factor.parse().ok()?;
    (0.0..=1e6).contains(&factor).then_some(Some(factor))
}
