//! Reads Rust by hand, as far as the rules need it; `rustc` has checked everything before.

mod edges;
mod functions;
mod items;
mod lexer;
mod names;
mod source;
mod syntax;

pub(crate) use edges::{Edge, edges};
pub(crate) use functions::{Function, Parameter, functions};
pub(crate) use items::{Impl, Items, code_paths};
pub(crate) use lexer::Token;
pub(crate) use names::{File, Modules, Named, View};
#[cfg(test)]
pub(crate) use source::made_up;
pub(crate) use source::{Package, ROOT, Source, workspace};
pub(crate) use syntax::{behind_angle, behind_attributes, behind_bracket, split};
