//! Whether an engine obeys request headers that take the place of a body's fields
//! (`SGLANG_ENABLE_REQUEST_HEADER_OVERRIDES`). No engine reports that; what it answers to a request
//! that it must refuse shows it.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use memchr::memmem;
use tokio::time::timeout;

use crate::upstream::{ControlClient, ControlRequest};

const ROOM: &str = "x-override-bootstrap-room";
static ROOM_NAME: HeaderName = HeaderName::from_static(ROOM);

/// What an engine does with `x-override-*` headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Overrides {
    /// It has not been found out since the engine was last away.
    #[default]
    Unknown,
    Ignored,
    Obeyed,
}

impl Overrides {
    /// Whether they are obeyed, if that is known.
    pub(crate) fn as_bool(self) -> Option<bool> {
        match self {
            Self::Unknown => None,
            Self::Ignored => Some(false),
            Self::Obeyed => Some(true),
        }
    }
}

/// What is known of an endpoint's engine now.
#[derive(Debug, Default)]
pub(crate) struct HeaderOverrides(AtomicU8);

impl HeaderOverrides {
    pub(crate) fn get(&self) -> Overrides {
        of_code(self.0.load(Relaxed))
    }

    /// Sets what is known; returns what was known before.
    pub(crate) fn set(&self, found: Overrides) -> Overrides {
        of_code(self.0.swap(found as u8, Relaxed))
    }
}

fn of_code(code: u8) -> Overrides {
    let known = [Overrides::Ignored, Overrides::Obeyed];
    let found = known.into_iter().find(|it| *it as u8 == code);
    found.unwrap_or_default()
}

/// Asks an engine, by a call to its `/generate` without a prompt and with a room that is no number. It refuses that
/// for the one or for the other; nothing is generated.
pub(super) async fn ask(
    to_generate: ControlRequest<'_>,
    client: &ControlClient,
    limit: Duration,
) -> Overrides {
    let question = ControlRequest {
        body: Bytes::from_static(b"{}"),
        line: Some((&ROOM_NAME, HeaderValue::from_static("?"))),
        ..to_generate
    };
    match timeout(limit, client.send(question)).await {
        Ok(Ok(answer)) => answered(answer.status, &answer.body),
        Ok(Err(_)) | Err(_) => Overrides::Unknown,
    }
}

fn answered(status: StatusCode, body: &[u8]) -> Overrides {
    let named = memmem::find(body, ROOM.as_bytes()).is_some();
    if status == StatusCode::BAD_REQUEST && named {
        Overrides::Obeyed
    } else {
        Overrides::Ignored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_of_the_header_shows_that_it_is_obeyed() {
        let invalid =
            br#"{"error":{"message":"invalid x-override-bootstrap-room header '?': no number"}}"#;
        let no_prompt = br#"{"error":{"message":"Either text, input_ids or input_embeds should be provided."}}"#;
        for (status, body, expected) in [
            (400, &invalid[..], Overrides::Obeyed),
            (400, no_prompt, Overrides::Ignored),
            (200, invalid, Overrides::Ignored),
            (500, invalid, Overrides::Ignored),
            (404, b"", Overrides::Ignored),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(answered(status, body), expected, "{status}");
        }
    }

    #[test]
    fn what_was_found_last_is_known() {
        let known = HeaderOverrides::default();
        let mut before = Overrides::Unknown;
        for found in [Overrides::Obeyed, Overrides::Ignored, Overrides::Unknown] {
            assert_eq!(known.set(found), before);
            assert_eq!(known.get(), found);
            before = found;
        }
    }
}
