//! Who is compared: the gateway's policies, and plain references.

use routing::{CongestionFactor, Params, Policy, PolicyKind};
use thiserror::Error;

use super::options::FleetOptions;
use super::reference::{Belief, Factor, Weighted};

/// What the names of references begin with.
const CHARGE: &str = "charge_";
const SIZED: &str = "sized_";
/// The number that follows the load.
const AUTO: &str = "auto";

/// No policy has that name.
#[derive(Debug, Error)]
#[error("unknown policy '{name}' (choose from {choices}, charge_K, sized_K; K a number or auto)")]
pub struct UnknownPolicy {
    name: String,
    choices: String,
}

/// A policy to be simulated.
#[derive(Clone, Debug)]
pub struct Contender {
    name: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Policy(PolicyKind),
    /// `None`: by load.
    CongestionFactor(Option<f64>),
    Sized(Option<f64>),
}

impl Contender {
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

    /// By name. Besides the gateway's policies there is `charge_K`: lowest queued + K × own
    /// uncached tokens, whatever the load, believing that caches hold everything; and
    /// `sized_K`, which knows what they hold exactly. K may be `auto`: `cache_aware`'s own.
    pub fn named(name: &str) -> Result<Self, UnknownPolicy> {
        let references = [
            factor(name, CHARGE).map(Kind::CongestionFactor),
            factor(name, SIZED).map(Kind::Sized),
        ];
        if let Some(kind) = references.into_iter().flatten().next() {
            let name = name.to_owned();
            return Ok(Self { name, kind });
        }
        let mut all = Self::all();
        match all.iter().position(|contender| contender.name == name) {
            Some(place) => Ok(all.swap_remove(place)),
            None => Err(UnknownPolicy {
                name: name.to_owned(),
                choices: all.iter().map(Self::name).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A fresh instance.
    pub(super) fn build(&self, options: &FleetOptions) -> Box<dyn Policy> {
        let params = Params {
            index_bytes: options.index_bytes,
            index_text: options.index_text(),
            ..Params::default()
        };
        let (belief, factor) = match self.kind {
            Kind::Policy(kind) => return kind.build(&params),
            Kind::CongestionFactor(factor) => (Belief::indexed(&params), factor),
            Kind::Sized(factor) => (Belief::sized(options.cache_blocks()), factor),
        };
        let by_load = || Factor::ByLoad(CongestionFactor::default());
        Box::new(Weighted::new(
            belief,
            factor.map_or_else(by_load, Factor::Fixed),
        ))
    }
}

/// What follows the prefix: a number, or `None` for one that follows the load.
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
