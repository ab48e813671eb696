//! Numbers as the load endpoints and the metrics round them.

/// Four decimals, as people read them.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// A share of a whole; 0 of nothing.
pub(crate) fn share(part: f64, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        rounded(part / whole as f64)
    }
}
