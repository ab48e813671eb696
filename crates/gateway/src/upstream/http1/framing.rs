//! Where a response body ends (RFC 9112 §6.3, §7.1).

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

/// A chunk-size line longer than this is malformed, bytes.
const MAX_CHUNK_LINE: usize = 1024;
/// Trailers longer than this are refused; they are read and dropped.
const MAX_TRAILERS: usize = 16 * 1024;

/// What is left of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Nothing, or nothing more.
    Done,
    /// So many bytes.
    Length(u64),
    /// Chunks, and where in them we are.
    Chunked(Chunk),
    /// Everything until the worker closes.
    UntilClose,
}

/// Where in a chunked body we are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Before a chunk-size line.
    Size,
    /// Inside a chunk, so many bytes before its end.
    Data(u64),
    /// After a chunk's data, before its line end.
    DataEnd,
    /// After the last chunk; so many trailer bytes seen.
    Trailers(usize),
}

/// The body is not what its framing promised.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadFraming(pub(super) &'static str);

impl Framing {
    /// The next piece of body in `buffer`; `None` when more must be read first, or all is done.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, BadFraming> {
        match self {
            Self::Done => Ok(None),
            Self::UntilClose => Ok(take(buffer, u64::MAX)),
            Self::Length(left) => {
                let piece = take(buffer, *left);
                *left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(piece)
            }
            Self::Chunked(chunk) => {
                let (piece, end) = chunk.decode(buffer)?;
                if end {
                    *self = Self::Done;
                }
                Ok(piece)
            }
        }
    }

    /// The worker closed: was that the end of the body?
    pub(super) fn close(&mut self) -> Result<(), BadFraming> {
        match self {
            Self::Done | Self::UntilClose => {
                *self = Self::Done;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => {
                Err(BadFraming("connection closed before the end of the body"))
            }
        }
    }
}

fn take(buffer: &mut BytesMut, most: u64) -> Option<Bytes> {
    let available = buffer
        .len()
        .min(usize::try_from(most).unwrap_or(usize::MAX));
    (available > 0).then(|| buffer.split_to(available).freeze())
}

enum Step {
    /// So many bytes of data.
    Data(usize),
    /// So many bytes of framing, and where that leads.
    Framing(usize, Chunk),
    Starved,
    End(usize),
}

impl Chunk {
    /// All data in `buffer` as one piece, and whether that was the end.
    ///
    /// A worker that writes many small chunks at once would otherwise cost a piece, a chunk and
    /// a slice of a write for each; moving their bytes together is far cheaper.
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<(Option<Bytes>, bool), BadFraming> {
        let bytes = &mut buffer[..];
        let (mut data, mut at, mut end) = (0..0, 0, false);
        while !end && at < bytes.len() {
            if *self == Self::Size
                && let Some(chunk) = whole_chunk(bytes, at)
            {
                at = chunk.end + 2;
                append(bytes, &mut data, chunk);
                continue;
            }
            match self.step(&bytes[at..]) {
                Ok(Step::Data(size)) => {
                    append(bytes, &mut data, at..at + size);
                    at += size;
                }
                Ok(Step::Framing(size, next)) => {
                    at += size;
                    *self = next;
                }
                Ok(Step::End(size)) => {
                    at += size;
                    end = true;
                }
                Ok(Step::Starved) => break,
                // The next call returns it, after what came before it.
                Err(_) if data.end > 0 => break,
                Err(error) => return Err(error),
            }
        }
        buffer.advance(data.start);
        let piece = take(buffer, data.len() as u64);
        buffer.advance(at - data.end);
        Ok((piece, end))
    }

    fn step(&mut self, rest: &[u8]) -> Result<Step, BadFraming> {
        match self {
            Self::Size => chunk_size(rest),
            Self::Data(0) => Ok(Step::Framing(0, Self::DataEnd)),
            Self::Data(_) if rest.is_empty() => Ok(Step::Starved),
            Self::Data(left) => {
                let size = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= size as u64;
                Ok(Step::Data(size))
            }
            Self::DataEnd => match rest.get(..2) {
                None => Ok(Step::Starved),
                Some(b"\r\n") => Ok(Step::Framing(2, Self::Size)),
                Some(_) => Err(BadFraming("chunk is longer than its size")),
            },
            Self::Trailers(seen) => trailers(rest, *seen),
        }
    }
}

/// Moves a part of `bytes` behind the `data` that stands before it.
fn append(bytes: &mut [u8], data: &mut Range<usize>, part: Range<usize>) {
    if data.end == 0 {
        *data = part;
        return;
    }
    let size = part.len();
    bytes.copy_within(part, data.end);
    data.end += size;
}

/// The data of the chunk at this place, if all of it is there and its size is written plainly, as
/// nearly always. Whatever else stands there is for [`chunk_size`] to judge.
fn whole_chunk(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let (mut size, mut digits) = (0, 0);
    loop {
        let digit = match *bytes.get(at + digits)? {
            digit @ b'0'..=b'9' => digit - b'0',
            digit @ b'a'..=b'f' => digit - b'a' + 10,
            digit @ b'A'..=b'F' => digit - b'A' + 10,
            _ => break,
        };
        size = size * 16 + usize::from(digit);
        digits += 1;
        if digits > 4 {
            return None;
        }
    }
    let start = at + digits + 2;
    let end = start + size;
    let is_whole =
        size > 0 && bytes.get(start - 2..start)? == b"\r\n" && bytes.get(end..end + 2)? == b"\r\n";
    is_whole.then_some(start..end)
}

fn chunk_size(rest: &[u8]) -> Result<Step, BadFraming> {
    match httparse::parse_chunk_size(rest) {
        Ok(httparse::Status::Complete((used, _))) if used > MAX_CHUNK_LINE => {
            Err(BadFraming("bad chunk size"))
        }
        Ok(httparse::Status::Complete((used, 0))) => Ok(Step::Framing(used, Chunk::Trailers(0))),
        Ok(httparse::Status::Complete((used, size))) => Ok(Step::Framing(used, Chunk::Data(size))),
        Ok(httparse::Status::Partial) if rest.len() < MAX_CHUNK_LINE => Ok(Step::Starved),
        Ok(httparse::Status::Partial) | Err(_) => Err(BadFraming("bad chunk size")),
    }
}

fn trailers(rest: &[u8], seen: usize) -> Result<Step, BadFraming> {
    let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
        let within = seen + rest.len() < MAX_TRAILERS;
        return if within {
            Ok(Step::Starved)
        } else {
            Err(BadFraming("trailers too long"))
        };
    };
    let line = &rest[..=end];
    let seen = seen + line.len();
    if seen > MAX_TRAILERS {
        return Err(BadFraming("trailers too long"));
    }
    if matches!(line, b"\r\n" | b"\n") {
        return Ok(Step::End(line.len()));
    }
    Ok(Step::Framing(line.len(), Chunk::Trailers(seen)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_all(mut framing: Framing, reads: &[&[u8]]) -> Result<(Vec<u8>, Framing), BadFraming> {
        let (mut buffer, mut body) = (BytesMut::new(), Vec::new());
        for read in reads {
            buffer.extend_from_slice(read);
            while let Some(piece) = framing.decode(&mut buffer)? {
                body.extend_from_slice(&piece);
            }
        }
        Ok((body, framing))
    }

    fn chunked() -> Framing {
        Framing::Chunked(Chunk::Size)
    }

    #[test]
    fn a_length_ends_the_body() {
        let (body, left) = decode_all(Framing::Length(5), &[b"hel", b"lo"]).unwrap();
        assert_eq!((&body[..], left), (&b"hello"[..], Framing::Done));
    }

    #[test]
    fn bytes_after_the_length_are_not_body() {
        let (body, _) = decode_all(Framing::Length(2), &[b"okHTTP/1.1 200"]).unwrap();
        assert_eq!(body, b"ok");
    }

    #[test]
    fn trailers_are_read_and_dropped() {
        let wire = b"3;x=y\r\nabc\r\n0\r\nA: b\r\nC: d\r\n\r\n";
        let (body, left) = decode_all(chunked(), &[wire]).unwrap();
        assert_eq!((&body[..], left), (&b"abc"[..], Framing::Done));
    }

    #[test]
    fn a_chunk_longer_than_its_size_is_refused() {
        assert!(decode_all(chunked(), &[b"2\r\nabc\r\n"]).is_err());
    }

    #[test]
    fn nonsense_is_not_a_chunk_size() {
        assert!(decode_all(chunked(), &[b"zz\r\n"]).is_err());
        assert!(decode_all(chunked(), &[&[b'1'; 4000]]).is_err());
        let endless = [b"0\r\n".to_vec(), vec![b'a'; 20_000]].concat();
        assert!(decode_all(chunked(), &[&endless]).is_err());
    }

    #[test]
    fn closing_ends_only_a_body_without_framing() {
        assert!(Framing::UntilClose.close().is_ok());
        assert!(Framing::Length(1).close().is_err());
        assert!(chunked().close().is_err());
    }

    #[test]
    fn chunks_that_came_together_are_one_piece() {
        let mut buffer = BytesMut::from(&b"3\r\nabc\r\n2\r\nde\r\n4\r\nfg"[..]);
        let mut framing = chunked();
        assert_eq!(framing.decode(&mut buffer).unwrap().unwrap(), "abcdefg");
        assert_eq!(framing.decode(&mut buffer).unwrap(), None);
        buffer.extend_from_slice(b"hi\r\n0\r\n\r\n");
        assert_eq!(framing.decode(&mut buffer).unwrap().unwrap(), "hi");
        assert_eq!((framing, buffer.len()), (Framing::Done, 0));
    }

    #[test]
    fn data_before_bad_framing_comes_first() {
        let mut buffer = BytesMut::from(&b"3\r\nabc\r\n2\r\nde\r\nzz\r\n"[..]);
        let mut framing = chunked();
        assert_eq!(framing.decode(&mut buffer).unwrap().unwrap(), "abcde");
        assert!(framing.decode(&mut buffer).is_err());
    }

    #[test]
    fn bytes_after_the_last_chunk_stay_in_the_buffer() {
        let mut buffer = BytesMut::from(&b"1\r\na\r\n0\r\nT: x\r\n\r\nHTTP/1.1"[..]);
        let mut framing = chunked();
        assert_eq!(framing.decode(&mut buffer).unwrap().unwrap(), "a");
        assert_eq!((framing, &buffer[..]), (Framing::Done, &b"HTTP/1.1"[..]));
    }

    proptest! {
        #[test]
        fn chunks_survive_any_split(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..10),
            size in 1..200_usize,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let reads: Vec<_> = wire.chunks(size).collect();
            let (body, left) = decode_all(chunked(), &reads).unwrap();
            prop_assert_eq!(body, chunks.concat());
            prop_assert_eq!(left, Framing::Done);
        }

        #[test]
        fn garbage_never_panics(wire in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_all(chunked(), &[&wire]);
        }
    }
}
