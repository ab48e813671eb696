//! Where a response body ends (RFC 9112 §6.3, §7.1).

use bytes::{Bytes, BytesMut};

/// A chunk-size line longer than this is no honest chunk.
const MAX_CHUNK_LINE: usize = 1024;
/// Trailers longer than this are refused; they are read and dropped.
const MAX_TRAILERS: usize = 16 * 1024;

/// What is left of a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Framing {
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
pub(crate) enum Chunk {
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
pub(crate) struct BadFraming(pub(crate) &'static str);

impl Framing {
    /// The next piece of body in `buffer`; `None` when more must be read first, or all is done.
    pub(crate) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, BadFraming> {
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
            Self::Chunked(chunk) => loop {
                let step = chunk.step(buffer)?;
                match step {
                    Step::Piece(piece) => return Ok(Some(piece)),
                    Step::Onward(next) => *chunk = next,
                    Step::Starved => return Ok(None),
                    Step::End => {
                        *self = Self::Done;
                        return Ok(None);
                    }
                }
            },
        }
    }

    /// The worker closed: was that the end of the body?
    pub(crate) fn close(&mut self) -> Result<(), BadFraming> {
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
    Piece(Bytes),
    Onward(Chunk),
    Starved,
    End,
}

impl Chunk {
    fn step(&mut self, buffer: &mut BytesMut) -> Result<Step, BadFraming> {
        match self {
            Self::Size => chunk_size(buffer),
            Self::Data(0) => Ok(Step::Onward(Self::DataEnd)),
            Self::Data(left) => match take(buffer, *left) {
                Some(piece) => {
                    *left -= piece.len() as u64;
                    Ok(Step::Piece(piece))
                }
                None => Ok(Step::Starved),
            },
            Self::DataEnd => match buffer.get(..2) {
                None => Ok(Step::Starved),
                Some(b"\r\n") => {
                    let _ = buffer.split_to(2);
                    Ok(Step::Onward(Self::Size))
                }
                Some(_) => Err(BadFraming("chunk is longer than its size")),
            },
            Self::Trailers(seen) => trailers(buffer, *seen),
        }
    }
}

fn chunk_size(buffer: &mut BytesMut) -> Result<Step, BadFraming> {
    match httparse::parse_chunk_size(buffer) {
        Ok(httparse::Status::Complete((used, size))) => {
            let _ = buffer.split_to(used);
            Ok(Step::Onward(if size == 0 {
                Chunk::Trailers(0)
            } else {
                Chunk::Data(size)
            }))
        }
        Ok(httparse::Status::Partial) if buffer.len() <= MAX_CHUNK_LINE => Ok(Step::Starved),
        Ok(httparse::Status::Partial) | Err(_) => Err(BadFraming("bad chunk size")),
    }
}

fn trailers(buffer: &mut BytesMut, seen: usize) -> Result<Step, BadFraming> {
    let Some(end) = buffer.iter().position(|&byte| byte == b'\n') else {
        let within = seen + buffer.len() <= MAX_TRAILERS;
        return if within {
            Ok(Step::Starved)
        } else {
            Err(BadFraming("trailers too long"))
        };
    };
    let line = buffer.split_to(end + 1);
    if matches!(&line[..], b"\r\n" | b"\n") {
        return Ok(Step::End);
    }
    let seen = seen + line.len();
    if seen > MAX_TRAILERS {
        return Err(BadFraming("trailers too long"));
    }
    Ok(Step::Onward(Chunk::Trailers(seen)))
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

    proptest! {
        #[test]
        fn chunks_survive_any_split(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..10),
            size in 1..20_usize,
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
