//! Request headers that take the place of a body's fields.

use http::{HeaderMap, HeaderValue};
use thiserror::Error;

use crate::server::parse::{BootstrapFields, OneOrMany, RoomNumber};

const HOST: &str = "x-override-bootstrap-host";
const PORT: &str = "x-override-bootstrap-port";
const ROOM: &str = "x-override-bootstrap-room";
const RID: &str = "x-override-rid";
const RANK: &str = "x-override-routed-dp-rank";
const PREFILL_RANK: &str = "x-override-disagg-prefill-dp-rank";

/// A header that is no integer, in SGLang's words.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("invalid {name} header '{value}': invalid literal for int() with base 10: '{value}'")]
pub(crate) struct HeaderError {
    name: &'static str,
    value: String,
}

/// The values in the headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    host: Option<String>,
    port: Option<i64>,
    room: Option<RoomNumber>,
    pub(crate) rid: Option<String>,
    pub(crate) rank: Option<u32>,
}

impl Overrides {
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, HeaderError> {
        // The simulated decode worker asks for no rank: only the number is checked.
        number::<u32>(headers, PREFILL_RANK)?;
        Ok(Self {
            host: text(headers, HOST),
            port: number(headers, PORT)?,
            room: number(headers, ROOM)?.map(RoomNumber),
            rid: text(headers, RID),
            rank: number(headers, RANK)?,
        })
    }

    /// Replaces the fields that the headers have.
    pub(crate) fn replace(&self, fields: &mut BootstrapFields) {
        if let Some(host) = &self.host {
            fields.host = Some(OneOrMany::One(Some(host.clone())));
        }
        if let Some(port) = self.port {
            fields.port = Some(OneOrMany::One(Some(port)));
        }
        if let Some(room) = self.room {
            fields.room = Some(OneOrMany::One(Some(room)));
        }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name).map(HeaderValue::as_bytes)?;
    Some(String::from_utf8_lossy(value).into_owned())
}

fn number<T: TryFrom<i128>>(
    headers: &HeaderMap,
    name: &'static str,
) -> Result<Option<T>, HeaderError> {
    let Some(value) = text(headers, name) else {
        return Ok(None);
    };
    let number = value.trim().parse::<i128>().ok();
    match number.and_then(|number| T::try_from(number).ok()) {
        Some(number) => Ok(Some(number)),
        None => Err(HeaderError { name, value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &'static str, value: &'static str) -> Result<Overrides, HeaderError> {
        let pair = (name.parse().unwrap(), HeaderValue::from_static(value));
        Overrides::read(&HeaderMap::from_iter([pair]))
    }

    #[test]
    fn numbers_of_any_size_are_read() {
        assert_eq!(read(ROOM, "-7").unwrap().room, Some(RoomNumber(-7)));
        let large = read(ROOM, "9223372036854775808").unwrap().room;
        assert_eq!(large, Some(RoomNumber(1 << 63)));
    }

    #[test]
    fn other_values_name_their_header() {
        for (name, value) in [
            (ROOM, "abc"),
            (ROOM, "1.5"),
            (PORT, ""),
            (ROOM, "?"),
            (RANK, "x"),
            (PREFILL_RANK, "x"),
        ] {
            let error = read(name, value).unwrap_err().to_string();
            let begin = format!("invalid {name} header '{value}': ");
            assert!(error.starts_with(&begin), "{error}");
        }
    }

    #[test]
    fn headers_replace_lists() {
        let body = r#"{"bootstrap_host":["a"],"bootstrap_port":[1],"bootstrap_room":[2]}"#;
        let mut fields: BootstrapFields = serde_json::from_str(body).unwrap();
        read(ROOM, "7").unwrap().replace(&mut fields);
        assert!(matches!(
            fields.room,
            Some(OneOrMany::One(Some(RoomNumber(7))))
        ));
        assert!(fields.has_list());
        read(HOST, "h").unwrap().replace(&mut fields);
        read(PORT, "8").unwrap().replace(&mut fields);
        assert!(!fields.has_list());
    }
}
