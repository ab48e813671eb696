//! Images, audio and video in a prompt.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_128;

/// Bytes of a medium at a time.
const PIECE: usize = 64;

/// What a medium is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MediumKind {
    /// A picture, or a page of a document.
    Image,
    /// A film.
    Video,
    /// A recording.
    Audio,
}

/// The tokens that a medium of each kind is taken to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MediaTokens {
    /// Of an image.
    pub image: u32,
    /// Of a video.
    pub video: u32,
    /// Of a recording.
    pub audio: u32,
}

impl Default for MediaTokens {
    fn default() -> Self {
        Self {
            image: 1_024,
            video: 8_192,
            audio: 1_024,
        }
    }
}

impl MediaTokens {
    /// The tokens of a medium.
    pub(crate) fn of(self, medium: &Medium) -> u32 {
        match medium.kind {
            MediumKind::Image => self.image,
            MediumKind::Video => self.video,
            MediumKind::Audio => self.audio,
        }
    }
}

/// An image, a recording or a video, known by one hash of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Medium {
    kind: MediumKind,
    /// The hash, repeated: the bytes that stand for the medium are cut from it.
    pattern: [u8; PIECE],
}

impl Medium {
    /// A medium with this content: base64 or a link, as it stands in the body.
    pub fn new(kind: MediumKind, content: &[u8]) -> Self {
        let hash = xxh3_128(content).to_le_bytes();
        let mut pattern = [0; PIECE];
        for repeated in pattern.as_chunks_mut().0 {
            *repeated = hash;
        }
        Self { kind, pattern }
    }

    /// What it is.
    pub fn kind(&self) -> MediumKind {
        self.kind
    }

    /// Up to `left` bytes that stand for it.
    pub(crate) fn piece(&self, left: u64) -> &[u8] {
        let left = usize::try_from(left).unwrap_or(PIECE);
        self.pattern.get(..left).unwrap_or(&self.pattern)
    }
}

/// A range of a prompt's bytes that is no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub(crate) range: Range<usize>,
    /// What stands there instead; `None` for bytes that are left out.
    pub(crate) medium: Option<Medium>,
}

impl Cut {
    /// A medium in place of its content.
    pub fn medium(range: Range<usize>, medium: Medium) -> Self {
        Self {
            range,
            medium: Some(medium),
        }
    }

    /// Bytes that are left out.
    pub fn omitted(range: Range<usize>) -> Self {
        Self {
            range,
            medium: None,
        }
    }

    /// The bytes concerned.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Whether the bytes are left out, with nothing in their place.
    pub fn is_omitted(&self) -> bool {
        self.medium.is_none()
    }
}
