//! The words of an enum, taken from the Rust type: the spellings that serde accepts are the list,
//! so no list is repeated here or in Python.

use std::cell::Cell;
use std::iter::once;

use gateway::Options;
use serde::de::value::{Error, MapDeserializer};
use serde::de::{DeserializeOwned, Error as _, IntoDeserializer, Visitor};
use serde::{Deserialize, Deserializer, Serialize, forward_to_deserialize_any};
use serde_json::{Value, json};

/// The values of an enum in the order of their declaration, each by its word.
pub(crate) fn of<T: DeserializeOwned + Serialize>() -> Vec<(String, T)> {
    let mut values: Vec<(String, T)> = Vec::new();
    for spelling in spellings(|probe| T::deserialize(probe).map(drop)) {
        let value = T::deserialize((*spelling).into_deserializer());
        let Ok::<T, Error>(value) = value else {
            continue;
        };
        if let Some(word) = word(&value)
            && values.iter().all(|(known, _)| *known != word)
        {
            values.push((word, value));
        }
    }
    values
}

/// The word of an enum's value.
pub(crate) fn word<T: Serialize>(value: &T) -> Option<String> {
    let json = serde_json::to_value(value).ok()?;
    Some(json.as_str()?.to_owned())
}

/// The words that an option accepts; empty for an option that is no enum.
pub(crate) fn of_option(name: &'static str) -> Vec<String> {
    let spellings = spellings(|probe| {
        let only = MapDeserializer::new(once((name, probe)));
        Options::deserialize(only).map(drop)
    });
    let mut words = Vec::new();
    for spelling in spellings {
        let options: Option<Options> = serde_json::from_value(json!({name: spelling})).ok();
        let mut json = options.and_then(|options| serde_json::to_value(options).ok());
        let word = json.as_mut().map(|json| json[name].take());
        if let Some(Value::String(word)) = word
            && !words.contains(&word)
        {
            words.push(word);
        }
    }
    words
}

/// All spellings of the enum that `read` asks its deserializer for; aliases are among them.
fn spellings(read: impl FnOnce(Probe<'_>) -> Result<(), Error>) -> &'static [&'static str] {
    let found = Cell::default();
    // It fails in any case, because a probe has no value.
    let _failed = read(Probe(&found));
    found.get()
}

/// A deserializer without a value that notes which enum it is asked for.
struct Probe<'a>(&'a Cell<&'static [&'static str]>);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.set(variants);
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::custom("a probe has no value"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl IntoDeserializer<'_, Error> for Probe<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
