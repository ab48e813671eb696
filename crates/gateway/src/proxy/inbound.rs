//! The client's body: bounded, whole, and read only where routing needs it.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{self, HeaderMap};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::endpoint::Undeclared;
use crate::error::Error;

/// Most bytes reserved on the word of a `content-length` alone.
const TRUSTED_RESERVE: u64 = 1024 * 1024;
/// How long a refused request's body is read on.
const LINGER: Duration = Duration::from_secs(5);

/// Refuses a body that its own `content-length` says is too large, before any of it is read.
pub(super) fn check_length(body: &Incoming, limit: u64) -> Result<(), Error> {
    if body.size_hint().lower() > limit {
        Err(Error::TooLarge { limit })
    } else {
        Ok(())
    }
}

/// Refuses a body that is not declared as JSON, where the endpoint asks for that.
pub(super) fn check_declared(rule: Undeclared, headers: &HeaderMap) -> Result<(), Error> {
    let declared = headers.get(header::CONTENT_TYPE);
    let json = declared.is_some_and(|value| is_json(value.as_bytes()));
    if json || (declared.is_none() && rule == Undeclared::OnlyIfAbsent) {
        return Ok(());
    }
    let (status, why) = match (rule, declared) {
        (Undeclared::BadRequest, _) => (
            StatusCode::BAD_REQUEST,
            "Missing Content-Type: application/json header",
        ),
        (_, None) => (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "missing content-type; expected 'content-type: application/json'",
        ),
        (_, Some(_)) => (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported content-type; expected 'content-type: application/json'",
        ),
    };
    Err(Error::ContentType {
        status,
        why: why.to_owned(),
    })
}

/// `application/json` or `application/<anything>+json`, with or without parameters.
fn is_json(value: &[u8]) -> bool {
    let essence = value
        .split(|&byte| byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    let subtype = essence
        .get(..12)
        .filter(|kind| kind.eq_ignore_ascii_case(b"application/"));
    subtype.is_some()
        && essence.len() >= 16
        && (essence[12..].eq_ignore_ascii_case(b"json")
            || essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json"))
}

/// Reads a whole body of at most `limit` bytes.
pub(super) async fn read(mut body: Incoming, limit: u64) -> Result<Bytes, Error> {
    let whole = collect(&mut body, limit).await;
    if whole.is_err() {
        linger(body);
    }
    whole
}

/// Reads on, for a while and for nothing, what a client is still sending.
///
/// Closing on unread bytes resets the connection, and the client may lose the reply that
/// says why its request was refused.
pub(crate) fn linger(mut body: Incoming) {
    if !body.is_end_stream() {
        tokio::spawn(timeout(LINGER, async move {
            while body.frame().await.is_some() {}
        }));
    }
}

async fn collect(body: &mut Incoming, limit: u64) -> Result<Bytes, Error> {
    check_length(body, limit)?;
    let expected = body.size_hint().lower();
    let first = next(body).await?.unwrap_or_default();
    if body.is_end_stream() && first.len() as u64 <= limit {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(expected.min(TRUSTED_RESERVE) as usize);
    whole.extend_from_slice(&first);
    loop {
        if whole.len() as u64 > limit {
            return Err(Error::TooLarge { limit });
        }
        let Some(piece) = next(body).await? else {
            return Ok(whole.freeze());
        };
        whole.extend_from_slice(&piece);
    }
}

async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Error> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::BodyIncomplete(error.to_string()))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// The fields of a request body that routing reads. Everything else is only checked to be JSON.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Peek<'a> {
    pub(super) model: Option<Cow<'a, str>>,
    pub(super) stream: bool,
}

impl<'a> Peek<'a> {
    /// Reads a JSON object (RFC 8259).
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Error> {
        serde_json::from_slice(body).map_err(|error| {
            let what = if error.is_data() {
                "Invalid JSON data"
            } else {
                "JSON syntax error"
            };
            Error::Json(format!("{what}: {error}; expected a JSON object"))
        })
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    Model,
    Stream,
    #[serde(other)]
    Other,
}

impl<'de: 'a, 'a> Deserialize<'de> for Peek<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PeekVisitor)
    }
}

struct PeekVisitor;

impl<'de> Visitor<'de> for PeekVisitor {
    type Value = Peek<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    /// A field of an unexpected type is the worker's to judge: here it counts as absent.
    /// Of a repeated field the last one counts, as in Python.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Peek<'de>, A::Error> {
        let mut peek = Peek::default();
        while let Some(field) = map.next_key::<Field>()? {
            match field {
                Field::Model => peek.model = text(map.next_value::<&RawValue>()?),
                Field::Stream => {
                    peek.stream = matches!(map.next_value::<&RawValue>()?.get(), "true" | "1");
                }
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(peek)
    }
}

fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'_>>(value.get())
        .ok()
        .map(|text| text.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peek(body: &str) -> Peek<'_> {
        Peek::read(body.as_bytes()).unwrap()
    }

    #[test]
    fn only_model_and_stream_are_read() {
        let peek =
            peek(r#"{"messages":[{"model":"no"}],"model":"a\u0062","stream":true,"x":1e999}"#);
        assert_eq!(
            peek,
            Peek {
                model: Some("ab".into()),
                stream: true
            }
        );
    }

    #[test]
    fn fields_of_another_type_count_as_absent() {
        assert_eq!(peek(r#"{"model":7,"stream":"yes"}"#), Peek::default());
        assert_eq!(peek(r#"{"model":null,"stream":null}"#), Peek::default());
    }

    #[test]
    fn of_a_repeated_field_the_last_counts() {
        assert_eq!(peek(r#"{"model":"a","model":"b"}"#).model.unwrap(), "b");
    }

    #[test]
    fn deep_nesting_is_accepted() {
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(peek(&deep), Peek::default());
    }

    #[test]
    fn what_is_no_json_object_is_refused() {
        for body in [
            "",
            "{",
            "[]",
            "1",
            "{\"a\":}",
            "{} {}",
            "{'a':1}",
            "\u{feff}{}",
        ] {
            let error = Peek::read(body.as_bytes()).unwrap_err();
            assert_eq!(error.status(), 400, "{body}");
            assert!(error.to_string().contains("JSON object"), "{error}");
        }
    }

    #[test]
    fn json_is_recognised_with_parameters_and_suffixes() {
        for yes in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/vnd.x+json",
        ] {
            assert!(is_json(yes.as_bytes()), "{yes}");
        }
        for no in [
            "",
            "text/plain",
            "application/jsonp",
            "application/x-www-form-urlencoded",
        ] {
            assert!(!is_json(no.as_bytes()), "{no}");
        }
    }
}
