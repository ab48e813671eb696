//! What surrounds a crate and must not get in: input and output, the clock, Python.

use crate::report::{Breach, check};
use crate::rust::{Modules, Package, Source, View, code_paths, workspace};

/// Paths that `routing` does not name.
const NOT_IN_ROUTING: [&[&str]; 12] = [
    &["tokio"],
    &["hyper"],
    &["http"],
    &["pyo3"],
    &["Instant", "now"],
    &["SystemTime"],
    &["std", "env"],
    &["std", "fs"],
    &["std", "io"],
    &["std", "net"],
    &["std", "process"],
    &["std", "thread"],
];

const PYTHON: [&str; 2] = ["pyo3", "pythonize"];

#[test]
fn routing_knows_no_io_no_clock_and_no_python() {
    let package = workspace().package("crates/routing/src");
    let rule = "routing_knows_no_io_no_clock_and_no_python";
    check(rule, 0, &named(&package, &NOT_IN_ROUTING));
}

#[test]
fn only_the_door_knows_python() {
    let inside = workspace()
        .sources
        .iter()
        .filter(|it| !it.path.starts_with("src/"));
    let found: Vec<_> = inside.flat_map(python).collect();
    check("only_the_door_knows_python", 0, &found);
}

fn named(package: &Package<'_>, forbidden: &[&[&str]]) -> Vec<Breach> {
    let modules = Modules::new(package, View::Whole);
    let mut found = Vec::new();
    for module in &modules.modules {
        let file = &modules.files[module.file];
        let imports = module.items.imports.iter();
        let mut paths: Vec<_> = imports.map(|it| (it.path.clone(), it.line)).collect();
        for part in &module.items.code {
            paths.extend(code_paths(&file.tokens, part.clone()));
        }
        for (path, line) in paths {
            let holds = |names: &&&[&str]| path.windows(names.len()).any(|some| some == **names);
            if forbidden.iter().any(|names| holds(&names)) {
                let what = format!("names {}", path.join("::"));
                found.push(Breach::at(&file.path, line, &what));
            }
        }
    }
    found
}

fn python(source: &Source) -> Vec<Breach> {
    let words = source.lexed.tokens.iter().filter(|token| token.is_word());
    let python = words.filter(|word| PYTHON.contains(&word.text));
    let breach = |line| Breach::at(&source.path, line, "names Python");
    python.map(|word| breach(word.line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rust::made_up;

    fn count(text: &'static str) -> usize {
        let sources = made_up::sources(&[("lib.rs", text)]);
        named(&made_up::package(&sources), &NOT_IN_ROUTING).len()
    }

    #[test]
    fn forbidden_paths_are_found_however_they_are_written() {
        for text in [
            "use tokio::time;",
            "use std::{fmt, thread::{self, sleep as s}};",
            "fn f() { std::net::TcpStream::connect(x); }",
            "use std::time::Instant; fn f() { Instant::now(); }",
            "mod inside { use std::time::SystemTime; }",
        ] {
            assert!(count(text) > 0, "{text}");
        }
    }

    #[test]
    fn other_paths_are_fine() {
        let text =
            "//! No tokio.\nuse std::{fmt, time::Duration}; fn f(http: Instant) { x.tokio() }";
        assert_eq!(count(text), 0);
    }

    #[test]
    fn python_is_found_in_code_only() {
        let count = |text| python(&Source::new("crates/x/src/lib.rs".to_owned(), text)).len();
        assert_eq!(count("use pyo3::prelude::*; #[pyo3::pyclass] struct S;"), 2);
        assert_eq!(count("// pyo3\nconst NAME: &str = \"pyo3\";"), 0);
    }
}
