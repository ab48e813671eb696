//! Forms of `multipart/form-data` (RFC 7578), as far as requests with a file need.

/// One part of a form.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part<'a> {
    pub(crate) name: &'a str,
    pub(crate) file_name: Option<&'a str>,
    pub(crate) content: &'a [u8],
}

/// The parts of a form; `None` if the body is none of this content type.
pub(crate) fn parts<'a>(content_type: &str, body: &'a [u8]) -> Option<Vec<Part<'a>>> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parameters, "boundary")?;
    let delimiter = format!("\r\n--{boundary}");
    // The first delimiter may stand at the very front.
    let opening = delimiter.trim_start().as_bytes();
    let mut rest = after(body, opening)?;
    let mut parts = Vec::new();
    while !rest.starts_with(b"--") {
        let end = find(rest, delimiter.as_bytes())?;
        parts.push(part(&rest[..end])?);
        rest = &rest[end + delimiter.len()..];
    }
    Some(parts)
}

/// A part, from the end of its delimiter's line.
fn part(text: &[u8]) -> Option<Part<'_>> {
    let head_end = find(text, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&text[..head_end]).ok()?;
    let disposition = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let found = name.trim().eq_ignore_ascii_case("content-disposition");
        found.then_some(value)
    })?;
    let (_, parameters) = disposition.split_once(';')?;
    Some(Part {
        name: parameter(parameters, "name")?,
        file_name: parameter(parameters, "filename"),
        content: &text[head_end + 4..],
    })
}

/// The value of `name=value` or `name="value"` in a list.
fn parameter<'a>(list: &'a str, wanted: &str) -> Option<&'a str> {
    list.split(';').find_map(|item| {
        let (name, value) = item.trim().split_once('=')?;
        let found = name.eq_ignore_ascii_case(wanted);
        found.then(|| value.trim_matches('"'))
    })
}

fn after<'a>(text: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    find(text, wanted).map(|at| &text[at + wanted.len()..])
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|part| part == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=\"x-1\"";

    #[test]
    fn parts_are_found_whatever_bytes_they_hold() {
        let body = b"--x-1\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n\
            --x-1\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
            Content-Type: audio/wav\r\n\r\n\x00\r\n\r\n--x\xff\r\n--x-1--\r\n";
        let parts = parts(TYPE, body).unwrap();
        assert_eq!(parts.len(), 2);
        assert_eq!((parts[0].name, parts[0].content), ("model", &b"m"[..]));
        assert_eq!(parts[0].file_name, None);
        assert_eq!(parts[1].file_name, Some("a.wav"));
        assert_eq!(parts[1].content, b"\x00\r\n\r\n--x\xff");
    }

    #[test]
    fn other_bodies_are_no_form() {
        assert_eq!(parts("application/json", b"{}"), None);
        assert_eq!(parts("multipart/form-data; a=b", b"{}"), None);
        assert_eq!(parts(TYPE, b"--x-1\r\nno end"), None);
        assert_eq!(parts(TYPE, b""), None);
    }
}
