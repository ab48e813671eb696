//! Requests that leave the zone where they are wanted: `smg_zone_crossings_total`.

use prometheus::IntCounter;
use routing::Crossing;

use super::registry::Maker;

/// The counts of crossings, by reason.
#[derive(Debug)]
pub(crate) struct ZoneMetrics([IntCounter; Crossing::ALL.len()]);

impl ZoneMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        let crossings = maker.counter(
            "smg_zone_crossings_total",
            "requests sent to a worker of another zone, by reason",
            &["reason"],
        )?;
        let counter = |reason: Crossing| crossings.with_label_values(&[reason.as_str()]);
        Ok(Self(Crossing::ALL.map(counter)))
    }

    /// A request goes to another zone.
    pub(crate) fn crossed(&self, reason: Crossing) {
        let reasons = Crossing::ALL.iter().zip(&self.0);
        for (_, counter) in reasons.filter(|(known, _)| **known == reason) {
            counter.inc();
        }
    }
}
