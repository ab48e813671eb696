//! Functions and their parameters.

use std::collections::BTreeMap;

use super::items::Impl;
use super::lexer::Token;
use super::names::Modules;
use super::syntax::{behind_angle, behind_attributes, behind_bracket, split, text};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameter<'a> {
    pub(crate) pattern: &'a [Token],
    /// The tokens of the type.
    pub(crate) kind: &'a [Token],
}

#[derive(Debug)]
pub(crate) struct Function<'a> {
    /// With the type that it belongs to: `Type::function`.
    pub(crate) name: String,
    pub(crate) line: usize,
    /// Without `self`.
    pub(crate) parameters: Vec<Parameter<'a>>,
}

/// The functions of a file whose parameters are its author's choice: those that a trait
/// prescribes are left out.
pub(crate) fn functions(modules: &Modules, file: usize) -> Vec<Function<'_>> {
    let tokens = &modules.files[file].tokens;
    let members = members(modules, file);
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let is_named = tokens.get(at + 1).is_some_and(|token| token.is_word());
        if text(tokens, at) != "fn" || !is_named {
            continue;
        }
        let name = text(tokens, at + 1);
        match members.get(&at) {
            Some(owner) if !owner.implemented.is_empty() => {}
            Some(owner) => {
                let owner = owner.target.last().copied().unwrap_or_default();
                found.push(function(tokens, at, format!("{owner}::{name}")));
            }
            None => found.push(function(tokens, at, name.to_owned())),
        }
    }
    found
}

/// Where the functions begin that stand in an `impl`.
fn members(modules: &Modules, file: usize) -> BTreeMap<usize, &Impl> {
    let mut found = BTreeMap::new();
    let tokens = &modules.files[file].tokens;
    let modules = modules.modules.iter().filter(|module| module.file == file);
    for owner in modules.flat_map(|module| &module.items.impls) {
        let mut at = owner.body.start;
        while at < owner.body.end {
            match text(tokens, at) {
                "(" | "[" | "{" => at = behind_bracket(tokens, at),
                word => {
                    found.extend((word == "fn").then_some((at, owner)));
                    at += 1;
                }
            }
        }
    }
    found
}

fn function(tokens: &[Token], at: usize, name: String) -> Function<'_> {
    let mut open = at + 2;
    if text(tokens, open) == "<" {
        open = behind_angle(tokens, open);
    }
    let list = if text(tokens, open) == "(" {
        &tokens[open + 1..behind_bracket(tokens, open) - 1]
    } else {
        &[]
    };
    Function {
        name,
        line: tokens[at].line,
        parameters: split(list).into_iter().filter_map(parameter).collect(),
    }
}

/// `None` for `self` in all its forms.
fn parameter(part: &[Token]) -> Option<Parameter<'_>> {
    let part = &part[behind_attributes(part, 0)..];
    let colon = part.iter().position(|token| token.text == ":")?;
    let (pattern, kind) = (&part[..colon], &part[colon + 1..]);
    let receiver = pattern.last().is_some_and(|token| token.text == "self");
    (!receiver).then_some(Parameter { pattern, kind })
}
