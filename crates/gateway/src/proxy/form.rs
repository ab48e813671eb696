//! The fields of a form (`multipart/form-data`, RFC 7578) that routing reads; the form itself
//! passes as it is.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use multer::{Constraints, Multipart, SizeLimit};

use crate::cpu_pool::CpuPool;
use crate::error::Error;

/// Longest value of a field that is read, bytes.
const MAX_VALUE: u64 = 4096;

/// The fields of a form that routing reads.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FormFields {
    pub(super) model: Option<String>,
    pub(super) stream: bool,
}

impl FormFields {
    /// Reads a form whose parts are separated by `boundary`.
    ///
    /// # Errors
    /// When the body is no such form.
    pub(super) async fn read(body: Bytes, boundary: String) -> Result<Self, Error> {
        let limits = SizeLimit::new()
            .for_field("model", MAX_VALUE)
            .for_field("stream", MAX_VALUE);
        let body = stream::once(async move { Ok::<_, Infallible>(body) });
        let constraints = Constraints::new().size_limit(limits);
        let mut form = Multipart::with_constraints(body, boundary, constraints);
        let refuse = |why: multer::Error| Error::Form(why.to_string());
        let mut fields = Self::default();
        while let Some(part) = form.next_field().await.map_err(refuse)? {
            match part.name() {
                Some("model") => fields.model = Some(part.text().await.map_err(refuse)?),
                Some("stream") => {
                    let value = part.text().await.map_err(refuse)?;
                    fields.stream = value.eq_ignore_ascii_case("true") || value == "1";
                }
                _ => {}
            }
        }
        Ok(fields)
    }

    /// The same on the CPU pool: recordings are large.
    pub(super) async fn read_off_lane(
        body: &Bytes,
        boundary: String,
        pool: &CpuPool,
    ) -> Result<Self, Error> {
        let body = body.clone();
        // The body is there: nothing is waited for.
        let read = pool.run(|| Self::read(body, boundary).now_or_never());
        let incomplete = || Err(Error::Form("it cannot be read".to_owned()));
        read.await.flatten().unwrap_or_else(incomplete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(parts: &[&str]) -> Result<FormFields, Error> {
        let part = |part: &&str| format!("--x\r\ncontent-disposition: form-data; {part}\r\n");
        let body: String = parts.iter().map(part).collect();
        FormFields::read(Bytes::from(body + "--x--\r\n"), "x".to_owned()).await
    }

    const FILE: &str =
        "name=\"file\"; filename=\"a.wav\"\r\ncontent-type: audio/wav\r\n\r\nRIFF\0\r\n-";

    #[tokio::test]
    async fn model_is_read_wherever_it_stands() {
        let model = "name=\"model\"\r\n\r\norg/whisper";
        let stream = "name=\"stream\"\r\n\r\nTrue";
        for parts in [[model, FILE, stream], [FILE, stream, model]] {
            let fields = read(&parts).await.unwrap();
            assert_eq!(fields.model.as_deref(), Some("org/whisper"));
            assert!(fields.stream);
        }
        assert_eq!(read(&[FILE]).await.unwrap(), FormFields::default());
    }

    #[tokio::test]
    async fn what_is_no_form_is_refused() {
        let long = format!("name=\"model\"\r\n\r\n{}", "m".repeat(5000));
        assert_eq!(read(&[&long]).await.unwrap_err().status(), 400);
        for body in [
            "",
            "{}",
            "--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nm",
        ] {
            let read = FormFields::read(Bytes::from_static(body.as_bytes()), "x".to_owned());
            assert_eq!(
                read.await.unwrap_err().code(),
                "form_parse_error",
                "{body:?}"
            );
        }
    }
}
