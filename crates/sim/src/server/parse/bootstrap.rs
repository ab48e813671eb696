//! The fields of a body that pair it with the other worker's request.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::sampling::OneOrMany;

/// A room of any size: SGLang accepts what later kills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RoomNumber(pub(crate) i128);

/// Host, port and room: one for all prompts, or one for each.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct BootstrapFields {
    #[serde(rename = "bootstrap_host")]
    pub(crate) host: Option<OneOrMany<Option<String>>>,
    #[serde(rename = "bootstrap_port")]
    pub(crate) port: Option<OneOrMany<Option<i64>>>,
    #[serde(rename = "bootstrap_room")]
    pub(crate) room: Option<OneOrMany<Option<RoomNumber>>>,
}

impl BootstrapFields {
    /// Whether any field is a list.
    pub(crate) fn has_list(&self) -> bool {
        matches!(self.host, Some(OneOrMany::Many(_)))
            || matches!(self.port, Some(OneOrMany::Many(_)))
            || matches!(self.room, Some(OneOrMany::Many(_)))
    }
}

struct Number;

impl Visitor<'_> for Number {
    type Value = RoomNumber;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an integer")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(RoomNumber(number.into()))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(RoomNumber(number.into()))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        // Integers beyond 64 bits come this way.
        let whole = number.fract() == 0.0;
        let number = whole.then_some(RoomNumber(number as i128));
        number.ok_or_else(|| E::custom("the room is not an integer"))
    }
}

impl<'de> Deserialize<'de> for RoomNumber {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(json: &str) -> Option<RoomNumber> {
        let body = format!(r#"{{"bootstrap_room":{json}}}"#);
        let fields: BootstrapFields = serde_json::from_str(&body).ok()?;
        fields.room?.into_vec()[0]
    }

    #[test]
    fn rooms_of_any_size_are_read() {
        assert_eq!(room("7"), Some(RoomNumber(7)));
        assert_eq!(room("-7"), Some(RoomNumber(-7)));
        assert_eq!(room("9223372036854775808"), Some(RoomNumber(1 << 63)));
        assert_eq!(room("36893488147419103232"), Some(RoomNumber(1 << 65)));
        assert_eq!(room("[8,9]"), Some(RoomNumber(8)));
        assert_eq!(room("null"), None);
    }

    #[test]
    fn other_rooms_are_errors() {
        for json in [r#""7""#, "1.5", "{}", "true"] {
            let body = format!(r#"{{"bootstrap_room":{json}}}"#);
            assert!(serde_json::from_str::<BootstrapFields>(&body).is_err());
        }
    }

    #[test]
    fn lists_are_told_from_scalars() {
        let fields = |json| serde_json::from_str::<BootstrapFields>(json).unwrap();
        assert!(fields(r#"{"bootstrap_host":["a"],"bootstrap_room":1}"#).has_list());
        assert!(!fields(r#"{"bootstrap_host":"a","bootstrap_port":null}"#).has_list());
    }
}
