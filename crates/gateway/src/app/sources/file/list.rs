//! The list of workers that a file holds.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};
use thiserror::Error;

use crate::api::{has_worker_field, read_worker};
use crate::config::file::{self, Item};
use crate::config::{FileError, Problem, Secret, WorkerUrl};
use crate::fleet::{Listed, WorkerSpec};
use crate::watched_file::FileProblem;

/// Largest file, bytes.
const MAX_FILE: u64 = 16 << 20;
/// Longest name of a field that a message repeats, characters.
const MAX_NAME: usize = 100;

/// Why there is no list.
#[derive(Debug, Error)]
pub(super) enum ListError {
    /// The file cannot be read.
    #[error(transparent)]
    Unreadable(FileError),
    /// What it says is wrong.
    #[error(transparent)]
    Invalid(FileError),
}

impl ListError {
    /// The `reason` label of metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::Invalid(_) => "invalid",
        }
    }
}

impl FileProblem for ListError {
    fn is_unreadable(&self) -> bool {
        matches!(self, Self::Unreadable(_))
    }
}

/// Reads the workers of a file, a YAML or JSON list of objects with the fields of `POST /workers`; a text is the URL
/// of a worker. Blocks.
///
/// # Errors
/// Everything that is wrong with the file.
pub(super) fn read(path: &Path, key: Option<&Secret>) -> Result<Vec<Listed>, ListError> {
    let error = |problems| FileError {
        path: path.display().to_string(),
        problems,
    };
    let text = text_of(path).map_err(|problem| ListError::Unreadable(error(vec![problem])))?;
    parse(&text, key).map_err(|problems| ListError::Invalid(error(problems)))
}

fn text_of(path: &Path) -> Result<String, Problem> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text));
    read.map_err(|why| Problem::nowhere(format!("cannot be read: {why}")))?;
    if text.len() as u64 > MAX_FILE {
        return Err(Problem::nowhere(format!("is larger than {MAX_FILE} bytes")));
    }
    String::from_utf8(text).map_err(|_| Problem::nowhere("is not UTF-8"))
}

fn parse(text: &str, key: Option<&Secret>) -> Result<Vec<Listed>, Vec<Problem>> {
    let items = file::list(text)?;
    let (mut workers, mut problems) = (Vec::new(), Vec::new());
    let mut lines: HashMap<WorkerUrl, usize> = HashMap::new();
    for item in items {
        let spec = match worker(&item) {
            Ok(spec) => spec,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        if let Some(line) = lines.insert(spec.url.clone(), item.at.line) {
            let why = format!("url: {} stands in line {line} already", spec.url);
            problems.push(problem(&item, why));
        }
        workers.push(Listed::from(WorkerSpec {
            key: spec.key.or_else(|| key.cloned()),
            ..spec
        }));
    }
    if problems.is_empty() {
        Ok(workers)
    } else {
        Err(problems)
    }
}

fn worker(item: &Item) -> Result<WorkerSpec, Problem> {
    let url;
    let fields = match &item.value {
        Value::Object(fields) => fields,
        Value::String(text) => {
            url = Map::from_iter([("url".to_owned(), text.clone().into())]);
            &url
        }
        _ => {
            let why = "expected a worker: its URL, or its fields with url";
            return Err(Problem::at(item.at, why));
        }
    };
    if let Some(name) = fields.keys().find(|name| !has_worker_field(name)) {
        let name: String = name.chars().take(MAX_NAME).collect();
        return Err(problem(item, format!("{name}: is no field of a worker")));
    }
    read_worker(fields).map_err(|error| problem(item, error.to_string()))
}

/// A mistake at the place of what it names.
fn problem(item: &Item, why: String) -> Problem {
    Problem::at(item.place_in(&why), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(text: &str) -> Vec<WorkerSpec> {
        let listed = parse(text, Some(&Secret::from("default".to_owned())));
        let specs = listed.unwrap().into_iter().map(|it| it.spec);
        specs.map(std::sync::Arc::unwrap_or_clone).collect()
    }

    fn problems(text: &str) -> Vec<String> {
        let problems = parse(text, None).unwrap_err();
        let error = FileError {
            path: "w.yaml".to_owned(),
            problems,
        };
        error.to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn workers_have_the_fields_of_the_worker_api_in_yaml_and_json() {
        let yaml = "- http://a:1\n- url: b:2\n  worker_type: prefill\n  bootstrap_port: 8998\n  api_key: own\n  labels: {zone: x}\n";
        let json = r#"["http://a:1", {"url": "http://b:2/", "worker_type": "prefill", "bootstrap_port": 8998,
            "api_key": "own", "labels": {"zone": "x"}}]"#;
        let found = workers(yaml);
        assert_eq!(found, workers(json));
        let keys: Vec<_> = found
            .iter()
            .map(|it| it.key.as_ref().unwrap().expose())
            .collect();
        assert_eq!(keys, ["default", "own"]);
        assert_eq!(found[1].bootstrap_port, Some(8998));
        assert_eq!(found[1].labels["zone"], "x");
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        let text = "- url: http://a:1\n  priorty: 1\n- 7\n- url: ftp://b\n- http://c:1\n- priority: 1\n- url: http://c:1/\n\
                    - url: http://d:1\n  bootstrap_port: many\n";
        let found = problems(text);
        let expected = [
            "w.yaml:2:3: priorty: is no field of a worker",
            "w.yaml:3:3: expected a worker: its URL, or its fields with url",
            "w.yaml:4:3: url: \"ftp://b\" must start with http:// or https://",
            "w.yaml:6:3: url: is missing",
            "w.yaml:7:3: url: http://c:1 stands in line 5 already",
            "w.yaml:9:3: bootstrap_port: must be a whole number up to 65535",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for wrong in ["url: http://a:1\n", "text", "[1", "- a\n---\n- b\n"] {
            assert!(parse(wrong, None).is_err(), "{wrong}");
        }
        assert!(parse("", None).unwrap().is_empty());
    }
}
