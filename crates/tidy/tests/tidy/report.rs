//! Counts the breaches of a rule, prints them, and compares them with the budget.

use std::collections::BTreeMap;
use std::env;

/// A place that breaks a rule.
#[derive(Debug)]
pub(crate) struct Breach {
    /// The file, from the root of the workspace.
    pub(crate) file: String,
    /// How much of the budget it uses.
    pub(crate) weight: usize,
    pub(crate) message: String,
}

impl Breach {
    /// A breach at a line of a file.
    pub(crate) fn at(file: &str, line: usize, what: &str) -> Self {
        Self {
            file: file.to_owned(),
            weight: 1,
            message: format!("{file}:{line}: {what}"),
        }
    }
}

/// Fails when the breaches exceed the budget.
#[track_caller]
pub(crate) fn check(rule: &str, budget: usize, breaches: &[Breach]) {
    let summary = summary(rule, budget, breaches);
    print(&summary);
    let fits = fits(budget, breaches);
    let messages: Vec<_> = breaches.iter().map(|it| it.message.as_str()).collect();
    let all = messages.join("\n");
    if fits && env::var_os("TIDY_ALL").is_some() {
        print(&all);
    }
    assert!(fits, "\n{summary}\n{all}\n");
}

fn fits(budget: usize, breaches: &[Breach]) -> bool {
    total(breaches) <= budget
}

fn total(breaches: &[Breach]) -> usize {
    breaches.iter().map(|breach| breach.weight).sum()
}

/// One line: the count, the budget, and the count of each crate.
fn summary(rule: &str, budget: usize, breaches: &[Breach]) -> String {
    let mut crates: BTreeMap<String, usize> = BTreeMap::new();
    for breach in breaches {
        *crates.entry(crate_of(&breach.file)).or_default() += breach.weight;
    }
    let crates: Vec<_> = crates
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    let count = total(breaches);
    let hint = match count.cmp(&budget) {
        std::cmp::Ordering::Less => ", lower the budget",
        std::cmp::Ordering::Equal => "",
        std::cmp::Ordering::Greater => ", TOO MANY",
    };
    let crates = crates.join(", ");
    format!("{rule}: {count}, budget {budget}{hint} [{crates}]")
}

/// `crates/x` or `src`.
fn crate_of(file: &str) -> String {
    let parts: Vec<_> = file.split('/').collect();
    let length = if parts[0] == "crates" { 2 } else { 1 };
    parts[..length.min(parts.len())].join("/")
}

#[expect(clippy::print_stdout, reason = "`--nocapture` shows the counts")]
fn print(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaches_are_counted_by_crate_and_weight() {
        let mut breaches = vec![
            Breach::at("crates/a/src/x.rs", 1, "wrong"),
            Breach::at("crates/a/tests/y.rs", 1, "wrong"),
            Breach::at("src/lib.rs", 7, "wrong"),
        ];
        assert_eq!(breaches[2].message, "src/lib.rs:7: wrong");
        let said = summary("rule", 3, &breaches);
        assert_eq!(said, "rule: 3, budget 3 [crates/a 2, src 1]");
        assert!(fits(3, &breaches) && !fits(2, &breaches));
        breaches[2].weight = 2;
        assert!(!fits(3, &breaches));
    }
}
