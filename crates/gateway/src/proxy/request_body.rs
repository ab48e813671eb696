//! The client's body: declared as JSON, bounded, whole.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{self, HeaderMap};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::body_budget::{BodyBudget, BodyShare};
use crate::endpoint::Undeclared;
use crate::error::Error;
use crate::header_lookup;

/// Most bytes reserved on the word of a `content-length` alone.
const TRUSTED_RESERVE: u64 = 1024 * 1024;
/// How long a refused request's body is read on.
const DRAIN_FOR: Duration = Duration::from_secs(5);

/// What the body of a request may take.
#[derive(Clone, Debug)]
pub(crate) struct BodyLimits {
    /// Its length, bytes.
    pub(crate) length: u64,
    /// The longest silence amid it.
    pub(crate) silence: Duration,
    /// The memory of all bodies.
    pub(crate) budget: Arc<BodyBudget>,
}

/// A body that has come in whole, and its share of the memory of all bodies.
#[derive(Debug)]
pub(crate) struct WholeBody {
    pub(crate) bytes: Bytes,
    #[expect(dead_code, reason = "given back when the body is dropped")]
    pub(crate) share: BodyShare,
}

/// Refuses a body that its own `content-length` says is too large, before any of it is read.
pub(super) fn check_length(body: &impl Body, limit: u64) -> Result<(), Error> {
    if body.size_hint().lower() > limit {
        Err(Error::TooLarge { limit })
    } else {
        Ok(())
    }
}

/// Refuses a body that is not declared as JSON, where the endpoint asks for that.
pub(super) fn check_declared(rule: Undeclared, headers: &HeaderMap) -> Result<(), Error> {
    let declared = header_lookup::first(headers, &header::CONTENT_TYPE);
    let json =
        rule != Undeclared::NoForm && declared.is_some_and(|value| is_json(value.as_bytes()));
    if json || (declared.is_none() && rule == Undeclared::OnlyIfAbsent) {
        return Ok(());
    }
    if rule == Undeclared::NoForm && boundary(headers).is_some() {
        return Ok(());
    }
    let (status, why) = match (rule, declared) {
        (Undeclared::NoForm, _) => (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "expected 'content-type: multipart/form-data' with a boundary",
        ),
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

/// The boundary between the parts of a form (RFC 7578), if the body is declared as one.
pub(super) fn boundary(headers: &HeaderMap) -> Option<String> {
    let declared = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    multer::parse_boundary(declared).ok()
}

/// Refuses a body that is compressed.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), Error> {
    if header_lookup::first(headers, &header::CONTENT_ENCODING).is_none() {
        return Ok(());
    }
    let encodings = headers.get_all(header::CONTENT_ENCODING).into_iter();
    let mut coded = encodings.filter(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
    coded.next().map_or(Ok(()), |value| {
        let value = String::from_utf8_lossy(value.as_bytes());
        Err(Error::ContentEncoding(value.into_owned()))
    })
}

/// Whether a body is declared as JSON.
pub(crate) fn declares_json(headers: &HeaderMap) -> bool {
    let declared = header_lookup::first(headers, &header::CONTENT_TYPE);
    declared.is_some_and(|value| is_json(value.as_bytes()))
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

/// Reads a whole body.
pub(crate) async fn read<B>(mut body: B, limits: &BodyLimits) -> Result<WholeBody, Error>
where
    B: Body<Data = Bytes, Error: Display> + Send + Unpin + 'static,
{
    let whole = collect(&mut body, limits).await;
    if matches!(
        whole,
        Err(Error::TooLarge { .. } | Error::BodyMemory { .. })
    ) {
        discard_in_background(body);
    }
    whole
}

/// Reads on, for a while and for nothing, what a client is still sending.
///
/// Closing on unread bytes resets the connection, and the client may lose the reply that
/// says why its request was refused.
pub(crate) fn discard_in_background(mut body: impl Body + Send + Unpin + 'static) {
    if !body.is_end_stream() {
        tokio::spawn(timeout(DRAIN_FOR, async move {
            while let Some(Ok(_)) = body.frame().await {}
        }));
    }
}

async fn collect<B>(body: &mut B, limits: &BodyLimits) -> Result<WholeBody, Error>
where
    B: Body<Data = Bytes, Error: Display> + Unpin,
{
    let (limit, silence) = (limits.length, limits.silence);
    let mut share = limits.budget.share();
    check_length(body, limit)?;
    let expected = body.size_hint().lower();
    let first = next(body, silence).await?.unwrap_or_default();
    if body.is_end_stream() && first.len() as u64 <= limit {
        share.grow_to(first.len() as u64)?;
        return Ok(WholeBody {
            bytes: first,
            share,
        });
    }
    let mut whole = BytesMut::with_capacity(expected.min(TRUSTED_RESERVE) as usize);
    whole.extend_from_slice(&first);
    loop {
        if whole.len() as u64 > limit {
            return Err(Error::TooLarge { limit });
        }
        share.grow_to(whole.len() as u64)?;
        let Some(piece) = next(body, silence).await? else {
            let bytes = whole.freeze();
            return Ok(WholeBody { bytes, share });
        };
        whole.extend_from_slice(&piece);
    }
}

async fn next<B>(body: &mut B, silence: Duration) -> Result<Option<Bytes>, Error>
where
    B: Body<Data = Bytes, Error: Display> + Unpin,
{
    loop {
        let frame = timeout(silence, body.frame())
            .await
            .map_err(|_| Error::BodyTimeout)?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(Error::BodyIncomplete(error.to_string())),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
