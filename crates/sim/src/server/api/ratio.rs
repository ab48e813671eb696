//! Rounded ratios of the load endpoints and the metrics.

/// Rounds to four decimals.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// `part / whole`, rounded; 0 if the whole is 0.
pub(crate) fn share(part: f64, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        rounded(part / whole as f64)
    }
}
