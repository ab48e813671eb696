//! Prompts in every form that the endpoints accept.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use crate::engine::Prompt;
use crate::server::runtime::vocabulary;

/// One prompt of a list.
#[derive(Debug)]
enum Item<'a> {
    Text(Cow<'a, str>),
    Ids(Vec<u32>),
}

/// A string, a list of strings, token ids, or a list of lists of token ids.
#[derive(Debug)]
pub(crate) struct Prompts<'a> {
    items: Vec<Item<'a>>,
    batch: bool,
}

impl Prompts<'_> {
    /// Whether the request has a list; then the response has a list, too.
    pub(crate) fn is_batch(&self) -> bool {
        self.batch
    }

    /// The prompts as the engine prefills them.
    pub(crate) fn to_prompts(&self, page_size: u32) -> Vec<Prompt> {
        let prompt = |item: &Item<'_>| match item {
            Item::Text(text) => Prompt::from_text(text, page_size),
            Item::Ids(ids) => Prompt::from_ids(ids, page_size),
        };
        self.items.iter().map(prompt).collect()
    }

    /// The prompts as text.
    pub(crate) fn texts(&self) -> Vec<String> {
        let text = |item: &Item<'_>| match item {
            Item::Text(text) => text.clone().into_owned(),
            Item::Ids(ids) => vocabulary::detokenize(ids),
        };
        self.items.iter().map(text).collect()
    }

    /// The prompts as token ids.
    pub(crate) fn ids(&self) -> Vec<Vec<u32>> {
        let ids = |item: &Item<'_>| match item {
            Item::Text(text) => vocabulary::tokenize(text),
            Item::Ids(ids) => ids.clone(),
        };
        self.items.iter().map(ids).collect()
    }
}

/// An element of the outer list.
enum Element<'a> {
    Id(u32),
    Item(Item<'a>),
}

struct AnyElement;

impl<'de> Visitor<'de> for AnyElement {
    type Value = Element<'de>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a string, a token id or a list of token ids")
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Self::Value, E> {
        u32::try_from(id)
            .map(Element::Id)
            .map_err(|_| E::custom("token id out of range"))
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Element::Item(Item::Text(Cow::Borrowed(text))))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Element::Item(Item::Text(Cow::Owned(text.to_owned()))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = from.next_element()? {
            ids.push(id);
        }
        Ok(Element::Item(Item::Ids(ids)))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Element<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AnyElement)
    }
}

struct AnyPrompts;

impl<'de> Visitor<'de> for AnyPrompts {
    type Value = Prompts<'de>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a prompt or a list of prompts")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        let items = vec![Item::Text(Cow::Borrowed(text))];
        Ok(Prompts {
            items,
            batch: false,
        })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        let items = vec![Item::Text(Cow::Owned(text.to_owned()))];
        Ok(Prompts {
            items,
            batch: false,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let (mut items, mut ids) = (Vec::new(), Vec::new());
        while let Some(element) = from.next_element()? {
            match element {
                Element::Id(id) => ids.push(id),
                Element::Item(item) => items.push(item),
            }
        }
        match (items.is_empty(), ids.is_empty()) {
            (true, true) => Err(de::Error::custom("the prompt is empty")),
            (false, false) => Err(de::Error::custom("prompts of different kinds")),
            (true, false) => Ok(Prompts {
                items: vec![Item::Ids(ids)],
                batch: false,
            }),
            (false, true) => Ok(Prompts { items, batch: true }),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Prompts<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AnyPrompts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<(usize, bool)> {
        let prompts: Prompts<'_> = serde_json::from_str(json).ok()?;
        Some((prompts.items.len(), prompts.is_batch()))
    }

    #[test]
    fn all_four_forms_are_parsed() {
        assert_eq!(read(r#""a""#), Some((1, false)));
        assert_eq!(read(r#"["a","b"]"#), Some((2, true)));
        assert_eq!(read("[1,2,3]"), Some((1, false)));
        assert_eq!(read("[[1,2],[3]]"), Some((2, true)));
    }

    #[test]
    fn other_forms_are_errors() {
        for json in ["[]", "{}", "7", r#"[1,"a"]"#, "[-1]", "[1.5]"] {
            assert_eq!(read(json), None, "{json}");
        }
    }
}
