//! The rules, a file each: its budget, its tests on the tree, its tests on made-up sources.

mod circles;
mod errors;
mod files;
mod impls;
mod lockfile;
mod mod_files;
mod parameters;
mod prose;
mod rooms;
mod surroundings;
