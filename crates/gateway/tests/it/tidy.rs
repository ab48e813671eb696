//! The code's own rules: which room may know which, and how long a file may be.

use std::fs;
use std::path::{Path, PathBuf};

/// A room, and the rooms it may name.
const ARROWS: [(&str, &[&str]); 9] = [
    ("config", &[]),
    ("endpoint", &[]),
    ("error", &["wire"]),
    ("wire", &[]),
    ("telemetry", &["config", "endpoint", "error"]),
    ("fleet", &["config", "telemetry", "wire"]),
    (
        "proxy",
        &["config", "endpoint", "error", "fleet", "telemetry", "wire"],
    ),
    (
        "server",
        &["config", "endpoint", "error", "fleet", "proxy", "telemetry"],
    ),
    ("app", &["config", "fleet", "proxy", "server", "telemetry"]),
];

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn all_sources() -> Vec<(PathBuf, String)> {
    let dirs = ["src", "crates/routing", "crates/gateway", "crates/sim"];
    let files = dirs
        .iter()
        .flat_map(|dir| sources(&Path::new(ROOT).join(dir)));
    let files: Vec<_> = files
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect();
    assert!(files.len() > 50, "the walk finds the sources");
    files
}

#[test]
fn rooms_name_only_the_rooms_below_them() {
    for (room, allowed) in ARROWS {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = sources(&base.join(room));
        files.extend(Some(base.join(format!("{room}.rs"))).filter(|path| path.exists()));
        assert!(!files.is_empty(), "{room} is gone");
        for path in files {
            let text = fs::read_to_string(&path).unwrap();
            for (other, _) in ARROWS.iter().filter(|(other, _)| *other != room) {
                let named = text.contains(&format!("crate::{other}::"));
                assert!(
                    !named || allowed.contains(other),
                    "{} names {other}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn routing_knows_no_io_no_clock_and_no_python() {
    for path in sources(&Path::new(ROOT).join("crates/routing/src")) {
        let text = fs::read_to_string(&path).unwrap();
        for word in [
            "tokio",
            "hyper",
            "http::",
            "pyo3",
            "Instant::now",
            "SystemTime",
            "std::thread",
        ] {
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
    }
}

#[test]
fn only_the_door_knows_python() {
    for (path, text) in all_sources() {
        let door = path.starts_with(Path::new(ROOT).join("src"));
        let this = path.ends_with("tidy.rs");
        assert!(
            door || this || !text.contains("pyo3"),
            "{} names pyo3",
            path.display()
        );
    }
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    for (path, text) in all_sources() {
        let lines = text.lines().count();
        assert!(lines <= 500, "{} has {lines} lines", path.display());
        assert!(
            text.starts_with("//!"),
            "{} does not say what it is for",
            path.display()
        );
    }
}

#[test]
fn errors_are_types_not_strings() {
    let shipped = |path: &Path| path.components().all(|part| part.as_os_str() != "tests");
    for (path, text) in all_sources().into_iter().filter(|(path, _)| shipped(path)) {
        let stringly = text
            .match_indices("Result<")
            .any(|(at, found)| last_argument(&text[at + found.len()..]) == Some("String"));
        assert!(!stringly, "{} has a String for an error", path.display());
    }
}

/// The last of several generic arguments, given the text behind the opening bracket.
fn last_argument(text: &str) -> Option<&str> {
    let (mut depth, mut start) = (0, None);
    for (at, character) in text.char_indices().take(300) {
        match character {
            '<' | '(' | '[' => depth += 1,
            '>' | ')' | ']' if depth == 0 => return Some(text[start?..at].trim()),
            '>' | ')' | ']' => depth -= 1,
            ',' if depth == 0 => start = Some(at + 1),
            _ => {}
        }
    }
    None
}

#[test]
fn a_string_error_would_be_seen() {
    assert_eq!(last_argument("Vec<(u8, u8)>, String> {"), Some("String"));
    assert_eq!(last_argument("BTreeMap<u8, String>> {"), None);
}
