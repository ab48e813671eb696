//! Rooms of the gateway need only the rooms below them.

use std::collections::BTreeSet;

use crate::report::{Breach, check};
use crate::rust::{Edge, Modules, Package, View, edges, workspace};

const DIR: &str = "crates/gateway/src";

/// `lib.rs`, which is no room.
const ROOT: &str = "lib";

/// A folder or a file in `DIR`, and the rooms that it may need.
#[derive(Clone, Copy, Debug)]
struct Room {
    name: &'static str,
    needs: &'static [&'static str],
}

const fn room(name: &'static str, needs: &'static [&'static str]) -> Room {
    Room { name, needs }
}

/// From top to bottom: a room needs only rooms of rows below its own.
#[rustfmt::skip]
const ARROWS: &[Room] = &[
    room("fuzz", &["api", "proxy", "upstream"]),
    room("app", &["admission", "api", "auth", "balancer", "config", "cpu_pool", "fleet", "lane", "proxy", "recorder", "replicas", "server", "shutdown", "telemetry", "tls", "upstream", "via", "watched_file", "writer_thread"]),
    room("server", &["admission", "api", "auth", "balancer", "config", "endpoint", "error", "fleet", "header_lookup", "lane", "proxy", "shutdown", "telemetry", "tls", "via"]),
    room("api", &["admission", "cpu_pool", "auth", "balancer", "config", "endpoint", "error", "fleet", "lane", "proxy", "replicas", "shutdown", "telemetry", "upstream"]),
    room("proxy", &["admission", "auth", "cpu_pool", "balancer", "config", "endpoint", "error", "fleet", "header_lookup", "lane", "telemetry", "upstream", "via"]),
    room("auth", &["config", "endpoint", "error", "header_lookup", "telemetry", "upstream", "via", "watched_file"]),
    room("replicas", &["balancer", "config", "fleet", "telemetry", "upstream"]),
    room("balancer", &["admission", "config", "endpoint", "fleet", "telemetry", "upstream"]),
    room("admission", &["config", "error", "telemetry"]),
    room("fleet", &["config", "lane", "telemetry", "upstream"]),
    room("telemetry", &["config", "endpoint", "error", "recorder", "upstream", "writer_thread"]),
    room("recorder", &["config", "writer_thread"]),
    room("error", &["config", "endpoint", "upstream"]),
    room("upstream", &["config", "lane", "tls", "via"]),
    room("tls", &["config"]),
    room("via", &["header_lookup"]),
    room("config", &[]),
    room("endpoint", &[]),
    room("cpu_pool", &[]),
    room("header_lookup", &[]),
    room("lane", &[]),
    room("shutdown", &[]),
    room("watched_file", &[]),
    room("writer_thread", &[]),
];

#[test]
fn rooms_need_only_the_rooms_below_them() {
    let found = wrong_arrows(&workspace().package(DIR), ARROWS);
    check("rooms_need_only_the_rooms_below_them", 0, &found);
}

#[test]
fn the_table_has_no_circle() {
    for (at, row) in ARROWS.iter().enumerate() {
        for need in row.needs {
            let below = ARROWS[at + 1..].iter().any(|other| other.name == *need);
            assert!(
                below,
                "`{}` needs `{need}`, which has no row below it",
                row.name
            );
        }
    }
}

/// The arrows that no row allows, and the rows that do not fit the rooms.
fn wrong_arrows(package: &Package<'_>, rooms: &[Room]) -> Vec<Breach> {
    let modules = Modules::new(package, View::Whole);
    let mut found: BTreeSet<(&str, usize, String)> = BTreeSet::new();
    for edge in edges(&modules) {
        let file = &modules.files[edge.from];
        let from = room_of(&file.name);
        for to in needed(&modules, &edge, rooms) {
            let allows = |row: &Room| row.name == from && row.needs.contains(&to);
            if from != to && from != ROOT && to != ROOT && !rooms.iter().any(allows) {
                let path = edge.path.join("::");
                let what = format!(
                    "`{path}` makes `{from}` need `{to}`; if it should, add it to the row of `{from}` in ARROWS"
                );
                found.insert((&file.path, edge.line, what));
            }
        }
    }
    let rows = misfits(&modules, rooms);
    found.extend(rows.map(|what| (package.dir.as_str(), 1, what)));
    let found = found.iter();
    found
        .map(|(file, line, what)| Breach::at(file, *line, what))
        .collect()
}

/// Rooms without a row, and rows without a room.
fn misfits(modules: &Modules, rooms: &[Room]) -> impl Iterator<Item = String> {
    let there: BTreeSet<_> = modules.files.iter().map(|it| room_of(&it.name)).collect();
    let rows: BTreeSet<_> = rooms.iter().map(|row| row.name).chain([ROOT]).collect();
    let no_row = there.difference(&rows);
    let no_row = no_row.map(|room| format!("`{room}` has no row in ARROWS: add one"));
    let no_room = rows.difference(&there);
    let no_room = no_room.map(|room| format!("`{room}` is gone: take its row out of ARROWS"));
    no_row.chain(no_room).collect::<Vec<_>>().into_iter()
}

/// The room of a file, given from `src`.
fn room_of(file: &str) -> &str {
    let first = file.split('/').next().unwrap_or_default();
    first.strip_suffix(".rs").unwrap_or(first)
}

/// The room that defines what is needed, and the room that it is named by.
fn needed<'a>(modules: &'a Modules, edge: &Edge, rooms: &'a [Room]) -> BTreeSet<&'a str> {
    let defining = room_of(&modules.files[edge.to].name);
    let named = match edge.path.as_slice() {
        ["crate", room, ..] => rooms.iter().find(|it| it.name == *room),
        _ => None,
    };
    named
        .map(|it| it.name)
        .into_iter()
        .chain([defining])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rust::made_up;

    const ROWS: &[Room] = &[room("top", &["base"]), room("base", &[]), room("leaf", &[])];

    fn of(top: &'static str, base: &'static str) -> Vec<String> {
        let sources = made_up::sources(&[
            ("lib.rs", "mod top; mod base; mod leaf; pub use top::T;"),
            ("top/mod.rs", top),
            ("base.rs", base),
            ("leaf.rs", "pub(crate) struct L;"),
        ]);
        let found = wrong_arrows(&made_up::package(&sources), ROWS);
        found.into_iter().map(|breach| breach.message).collect()
    }

    #[test]
    fn an_arrow_upwards_is_found_however_it_is_written() {
        for base in [
            "use crate::top::T;",
            "use crate::{leaf, top::{self, T}};",
            "use super::top; fn f() { top::T::new() }",
            "fn f() { crate::top::T::new() }",
            "#[cfg(test)] mod tests { use crate::top::T; }",
            "use crate::T;",
        ] {
            let found = of("pub(crate) struct T;", base);
            assert_eq!(found.len(), 1, "{base}: {found:?}");
            assert!(found[0].contains("makes `base` need `top`"), "{found:?}");
        }
    }

    #[test]
    fn names_that_a_room_lends_are_arrows_to_it_too() {
        let found = of("pub(crate) use crate::leaf::L;", "use crate::top::L;");
        let needs = |room: &str| {
            found
                .iter()
                .any(|it| it.contains(&format!("`base` need `{room}`")))
        };
        assert!(needs("top") && needs("leaf"), "{found:?}");
    }

    #[test]
    fn arrows_downwards_are_fine() {
        let found = of(
            "use crate::base::B; pub(crate) struct T;",
            "pub(crate) struct B;",
        );
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn rows_and_rooms_fit() {
        let sources = made_up::sources(&[
            ("lib.rs", "mod top; mod new;"),
            ("top.rs", ""),
            ("new.rs", ""),
        ]);
        let found = wrong_arrows(&made_up::package(&sources), ROWS);
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
