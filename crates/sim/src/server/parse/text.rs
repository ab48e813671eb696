//! Text that an API also accepts as a list of parts.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

/// A string, `null` (empty), or a list of strings and `{"text": ..}` parts (joined).
#[derive(Clone, Debug, Default)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl Text<'_> {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Part<'a> {
    Plain(String),
    Typed {
        #[serde(borrow, default)]
        text: Option<Cow<'a, str>>,
    },
}

struct AnyText;

impl<'de> Visitor<'de> for AnyText {
    type Value = Text<'de>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a string or a list of text parts")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Text::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
        let mut joined = String::new();
        while let Some(part) = parts.next_element::<Part<'de>>()? {
            match part {
                Part::Plain(text) => joined.push_str(&text),
                Part::Typed { text } => joined.push_str(&text.unwrap_or_default()),
            }
        }
        Ok(Text(Cow::Owned(joined)))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AnyText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_string_is_borrowed() {
        let text: Text<'_> = serde_json::from_str(r#""hello""#).unwrap();
        assert!(matches!(text.0, Cow::Borrowed("hello")));
    }

    #[test]
    fn text_parts_are_joined_and_images_are_skipped() {
        let json = r#"[{"type":"text","text":"a"},{"type":"image_url","image_url":{}},"b"]"#;
        assert_eq!(
            serde_json::from_str::<Text<'_>>(json).unwrap().as_str(),
            "ab"
        );
        assert_eq!(
            serde_json::from_str::<Text<'_>>("null").unwrap().as_str(),
            ""
        );
        assert!(serde_json::from_str::<Text<'_>>("3").is_err());
    }
}
