//! The fuzz targets, bounded: every input of the corpus, and mutations of it.
//! `PROPTEST_CASES=100000 cargo test -p gateway fuzz` looks longer.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;

/// One change of an input.
#[derive(Clone, Debug)]
enum Mutation {
    Remove {
        at: Index,
        length: usize,
    },
    Repeat {
        at: Index,
        length: usize,
        times: usize,
    },
    Set {
        at: Index,
        byte: u8,
    },
    Insert {
        at: Index,
        token: Index,
    },
    Truncate {
        at: Index,
    },
    /// A part of another input of the corpus.
    Splice {
        at: Index,
        other: Index,
        from: Index,
    },
}

impl Mutation {
    fn any() -> impl Strategy<Value = Self> {
        let at = any::<Index>;
        prop_oneof![
            (at(), 1..40_usize).prop_map(|(at, length)| Self::Remove { at, length }),
            (at(), 1..40_usize, 1..80_usize).prop_map(|(at, length, times)| Self::Repeat {
                at,
                length,
                times
            }),
            (at(), any::<u8>()).prop_map(|(at, byte)| Self::Set { at, byte }),
            (at(), at()).prop_map(|(at, token)| Self::Insert { at, token }),
            at().prop_map(|at| Self::Truncate { at }),
            (at(), at(), at()).prop_map(|(at, other, from)| Self::Splice { at, other, from }),
        ]
    }

    fn apply(&self, input: &mut Vec<u8>, corpus: &Corpus) {
        let place = |at: &Index| at.index(input.len() + 1);
        let part = |at: usize, length: usize| at..(at + length).min(input.len());
        match self {
            Self::Remove { at, length } => drop(input.drain(part(place(at), *length))),
            Self::Repeat { at, length, times } => {
                let at = place(at);
                let repeated = input[part(at, *length)].repeat(*times);
                drop(input.splice(at..at, repeated));
            }
            Self::Set { at, byte } if !input.is_empty() => {
                let at = at.index(input.len());
                input[at] = *byte;
            }
            Self::Set { .. } => {}
            Self::Insert { at, token } => {
                let at = place(at);
                let token = token.get(&corpus.tokens).bytes();
                drop(input.splice(at..at, token));
            }
            Self::Truncate { at } => input.truncate(place(at)),
            Self::Splice { at, other, from } => {
                let other = other.get(&corpus.inputs);
                let other = &other[from.index(other.len() + 1)..];
                input.truncate(place(at));
                input.extend_from_slice(other);
            }
        }
    }
}

/// What a target starts from.
struct Corpus {
    inputs: Vec<Vec<u8>>,
    tokens: Vec<String>,
}

impl Corpus {
    fn of(target: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
        let files = fs::read_dir(root.join("corpus").join(target)).unwrap();
        let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        let inputs = files.iter().map(|file| fs::read(file).unwrap()).collect();
        let tokens = fs::read_to_string(root.join(format!("{target}.dict"))).unwrap();
        let tokens = tokens.lines().filter(|line| line.starts_with('"'));
        let tokens = tokens.map(|line| serde_json::from_str(line).unwrap());
        Self {
            inputs,
            tokens: tokens.collect(),
        }
    }
}

fn check(name: &str, target: fn(&[u8])) {
    let corpus = Corpus::of(name);
    assert!(!corpus.inputs.is_empty() && !corpus.tokens.is_empty());
    corpus.inputs.iter().for_each(|input| target(input));
    let mutations = prop::collection::vec(Mutation::any(), 1..8);
    let strategy = (any::<Index>(), mutations);
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let run = runner.run(&strategy, |(input, mutations)| {
        let mut input = input.get(&corpus.inputs).clone();
        for mutation in &mutations {
            mutation.apply(&mut input, &corpus);
        }
        target(&input);
        Ok(())
    });
    run.unwrap();
}

#[test]
fn any_response_of_a_worker_is_read_the_same_however_it_is_cut() {
    check("response", super::response);
}

#[test]
fn any_request_body_gives_the_fields_that_a_json_parser_sees() {
    check("body_fields", super::body_fields);
}

#[test]
fn any_stream_of_events_is_judged_the_same_however_it_is_cut() {
    check("events", super::events);
}

#[test]
fn any_worker_body_that_is_accepted_changes_nothing_when_sent_again() {
    check("worker_body", super::worker_body);
}

#[test]
fn any_pages_of_metrics_merge_into_one_that_parses() {
    check("exposition", super::exposition);
}

#[test]
fn every_fuzz_target_has_its_test_here() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    let manifest = fs::read_to_string(root.join("../Cargo.toml")).unwrap();
    for file in fs::read_dir(root).unwrap() {
        let file = file.unwrap().path();
        let name = file.file_stem().unwrap().to_str().unwrap();
        assert!(include_str!("tests.rs").contains(&format!("check(\"{name}\", super::{name})")));
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
