//! YAML 1.2, and JSON with it, as values with places.

use std::cmp::Reverse;

use saphyr::{LoadableYamlNode, MarkedYaml, Marker, Scalar, YamlData};
use saphyr_parser::{Event, Parser};
use serde_json::{Map, Number, Value};

use super::problem::{Place, Problem};

/// Deepest nesting of lists and mappings; options need four levels.
const MAX_DEPTH: usize = 16;

/// An item of a list, or the value of a key.
pub(crate) struct Item {
    pub(crate) value: Value,
    pub(crate) at: Place,
    /// The keys and texts within the value.
    inner: Vec<(String, Place)>,
}

impl Item {
    fn read(node: &MarkedYaml<'_>) -> Result<Self, Problem> {
        let mut inner = Vec::new();
        let value = to_json(node, &mut inner)?;
        let at = place(node.span.start);
        Ok(Self { value, at, inner })
    }

    /// The place of the key or text within the value that `message` names first; else that of the
    /// item.
    pub(crate) fn place_in(&self, message: &str) -> Place {
        let found = |(text, place): &(String, Place)| {
            let at = find_word(message, text)?;
            Some(((at, Reverse(text.len())), *place))
        };
        let named = self.inner.iter().filter_map(found);
        let first = named.min_by_key(|(order, _)| *order);
        first.map_or(self.at, |(_, place)| place)
    }
}

/// Where a text stands in a message, not as a part of a longer word.
fn find_word(message: &str, text: &str) -> Option<usize> {
    let ends = |rest: Option<char>| !rest.is_some_and(|it| it.is_alphanumeric() || it == '_');
    let mut places = message.match_indices(text).filter(|_| !text.is_empty());
    let found = places.find(|(at, _)| {
        let (before, after) = (&message[..*at], &message[at + text.len()..]);
        ends(before.chars().next_back()) && ends(after.chars().next())
    });
    found.map(|(at, _)| at)
}

/// An option of a file.
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_at: Place,
    pub(crate) item: Item,
}

/// The items of a file that is a list, in its order.
///
/// # Errors
/// What is no YAML, or no list.
pub(crate) fn list(text: &str) -> Result<Vec<Item>, Vec<Problem>> {
    let Some(root) = root(text)? else {
        return Ok(Vec::new());
    };
    let YamlData::Sequence(items) = &root.data else {
        let why = "expected a list, `- name: value`";
        return Err(vec![Problem::at(place(root.span.start), why)]);
    };
    all_or_problems(items.iter().map(Item::read))
}

/// The keys of a file that is a mapping, in its order.
///
/// # Errors
/// What is no YAML, or no mapping.
pub(crate) fn mapping(text: &str) -> Result<Vec<Entry>, Vec<Problem>> {
    let Some(root) = root(text)? else {
        return Ok(Vec::new());
    };
    let YamlData::Mapping(pairs) = &root.data else {
        let why = "expected options, `name: value`";
        return Err(vec![Problem::at(place(root.span.start), why)]);
    };
    all_or_problems(pairs.iter().map(|(key, value)| {
        Ok(Entry {
            key_at: place(key.span.start),
            key: name(key)?,
            item: Item::read(value)?,
        })
    }))
}

fn all_or_problems<T>(
    read: impl Iterator<Item = Result<T, Problem>>,
) -> Result<Vec<T>, Vec<Problem>> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for one in read {
        match one {
            Ok(one) => good.push(one),
            Err(problem) => bad.push(problem),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(bad) }
}

/// The one document of a file; `None` where it is empty.
fn root(text: &str) -> Result<Option<MarkedYaml<'_>>, Vec<Problem>> {
    check_depth(text).map_err(|problem| vec![problem])?;
    let documents = MarkedYaml::load_from_str(text)
        .map_err(|error| vec![Problem::at(place(*error.marker()), error.info())])?;
    let mut documents = documents.into_iter();
    let root = documents.next();
    if let Some(second) = documents.next() {
        let why = "a second document; expected one";
        return Err(vec![Problem::at(place(second.span.start), why)]);
    }
    Ok(root.filter(|root| !matches!(root.data, YamlData::Value(Scalar::Null))))
}

fn name(key: &MarkedYaml<'_>) -> Result<String, Problem> {
    match &key.data {
        YamlData::Value(Scalar::String(name)) => Ok(name.clone().into_owned()),
        _ => Err(Problem::at(
            place(key.span.start),
            "a key that is no text; put it in quotes",
        )),
    }
}

fn to_json(node: &MarkedYaml<'_>, inner: &mut Vec<(String, Place)>) -> Result<Value, Problem> {
    let at = place(node.span.start);
    Ok(match &node.data {
        YamlData::Value(Scalar::Null) => Value::Null,
        YamlData::Value(Scalar::Boolean(flag)) => Value::Bool(*flag),
        YamlData::Value(Scalar::Integer(number)) => Value::from(*number),
        YamlData::Value(Scalar::FloatingPoint(number)) => Number::from_f64(number.0)
            .map(Value::Number)
            .ok_or_else(|| Problem::at(at, "must be a finite number"))?,
        YamlData::Value(Scalar::String(text)) => {
            inner.push((text.clone().into_owned(), at));
            Value::String(text.clone().into_owned())
        }
        YamlData::Sequence(items) => {
            let items = items.iter().map(|item| to_json(item, inner));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        YamlData::Mapping(mapping) => {
            let mut object = Map::new();
            for (key, value) in mapping {
                let text = name(key)?;
                inner.push((text.clone(), place(key.span.start)));
                object.insert(text, to_json(value, inner)?);
            }
            Value::Object(object)
        }
        _ => return Err(Problem::at(at, "YAML tags are not understood here")),
    })
}

/// Where a file is no YAML, or nests deeper than any option does: the loader calls itself at
/// every level.
fn check_depth(text: &str) -> Result<(), Problem> {
    let mut depth = 0_usize;
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|error| Problem::at(place(*error.marker()), error.info()))?;
        match event {
            Event::SequenceStart(..) | Event::MappingStart(..) => depth += 1,
            Event::SequenceEnd | Event::MappingEnd => depth -= 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            let why = "lists and mappings are nested too deeply";
            return Err(Problem::at(place(span.start), why));
        }
    }
    Ok(())
}

/// Columns are counted from 0 there.
fn place(marker: Marker) -> Place {
    Place {
        line: marker.line(),
        column: marker.col() + 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mapping_is_read_with_the_places_of_its_keys() {
        let text = "# a gateway\nport: 8080  # here\n\nworker_urls:\n  - http://a:1\n";
        let entries = mapping(text).unwrap_or_default();
        let keys: Vec<_> = entries
            .iter()
            .map(|it| (&*it.key, it.key_at.line))
            .collect();
        assert_eq!(keys, [("port", 2), ("worker_urls", 4)]);
        assert_eq!(entries[1].item.value, json!(["http://a:1"]));
        for (wrong, line) in [
            ("port: 1\nport: 2\n", 2),
            ("- port\n", 1),
            ("port: 1\n bad: [\n", 2),
            ("port: !!int 1\nx: {1: 2}\n", 2),
        ] {
            let problem = mapping(wrong).err().unwrap().remove(0);
            assert_eq!(problem.place.unwrap().line, line, "{wrong}");
        }
    }

    #[test]
    fn list_is_read_as_yaml_or_json_with_places() {
        for text in [
            "# workers\n- url: http://a:1\n- {url: 'http://b:1', priority: 2}\n",
            "[{\"url\": \"http://a:1\"},\n {\"url\": \"http://b:1\", \"priority\": 2}]",
        ] {
            let items = list(text).unwrap_or_default();
            let values: Vec<_> = items.iter().map(|item| &item.value).collect();
            let (a, b) = (
                json!({"url": "http://a:1"}),
                json!({"url": "http://b:1", "priority": 2}),
            );
            assert_eq!(values, [&a, &b], "{text}");
            assert!(items[1].at.line > items[0].at.line);
            assert_eq!(
                items[1].place_in("priority: is wrong").line,
                items[1].at.line
            );
        }
        for empty in ["", "[]", "# nothing\n", "---\n"] {
            assert!(list(empty).unwrap_or_default().is_empty(), "{empty:?}");
            assert!(list(empty).is_ok(), "{empty:?}");
        }
        for (wrong, line) in [
            ("url: a\n", 1),
            ("- a\n---\n- b\n", 3),
            ("- [1\n", 2),
            ("- 7: x\n", 1),
        ] {
            let problem = list(wrong).err().unwrap().remove(0);
            assert_eq!(problem.place.unwrap().line, line, "{wrong}");
        }
    }
}
