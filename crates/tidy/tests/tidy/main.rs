//! The code's own rules, read from its text.
//!
//! `rust` reads Rust: tokens, items, names. `rules` has a file per rule. A rule that does not
//! hold yet has a budget, a constant beside it that may only go down. `report` counts and prints:
//! `cargo test -p tidy -- --nocapture` shows the counts, with `TIDY_ALL=1` every breach.

mod report;
mod rules;
mod rust;
