//! Crates that no build may bring in.

use std::fs;

use crate::report::{Breach, check};
use crate::rust::ROOT;

/// TLS is rustls with ring: a second provider makes rustls panic where none is passed, and a
/// wheel links no library of the system.
const FORBIDDEN: [&str; 6] = [
    "aws-lc-fips-sys",
    "aws-lc-rs",
    "aws-lc-sys",
    "native-tls",
    "openssl",
    "openssl-sys",
];

#[test]
fn one_implementation_of_tls_is_locked() {
    let lockfile = fs::read_to_string(format!("{ROOT}/Cargo.lock"));
    let lockfile = lockfile.expect("Cargo.lock is in the root");
    let found = forbidden("Cargo.lock", &lockfile);
    check("one_implementation_of_tls_is_locked", 0, &found);
}

fn forbidden(file: &str, lockfile: &str) -> Vec<Breach> {
    let lines = lockfile.lines().enumerate();
    let named = lines.filter_map(|(at, line)| {
        let name = line.strip_prefix("name = \"")?.strip_suffix('"')?;
        FORBIDDEN.contains(&name).then(|| (at + 1, name))
    });
    let breach = |(line, name)| Breach::at(file, line, &format!("locks {name}"));
    named.map(breach).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_crate_is_found_by_its_whole_name() {
        let lockfile =
            "[[package]]\nname = \"openssl-probe\"\n\n[[package]]\nname = \"aws-lc-sys\"\n";
        let found = forbidden("Cargo.lock", lockfile);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].message, "Cargo.lock:5: locks aws-lc-sys");
    }
}
