//! A request's prompt: borrowed bytes, never copied, never decoded.

use std::slice;

use xxhash_rust::xxh3::Xxh3;

use crate::medium::{Cut, MediaTokens, Medium};
use crate::text_ratio::TextRatio;

/// Bytes that stand for a token of a medium among token ids: five digits and a comma.
const ID_BYTES: u64 = 6;

/// A stretch of a prompt: bytes of the request's body, and what of them is no text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Part<'a> {
    bytes: &'a [u8],
    cuts: &'a [Cut],
}

impl<'a> Part<'a> {
    /// Bytes of which some are no text. The cuts lie within them, in order, and do not overlap.
    pub fn new(bytes: &'a [u8], cuts: &'a [Cut]) -> Self {
        debug_assert!(
            cuts.is_sorted_by(|one, next| one.range.end <= next.range.start)
                && cuts.iter().all(|cut| cut.range.start <= cut.range.end)
                && cuts.last().is_none_or(|cut| cut.range.end <= bytes.len())
        );
        Self { bytes, cuts }
    }

    /// The bytes that are text.
    fn text_len(&self) -> u64 {
        let cut: usize = self.cuts.iter().map(|cut| cut.range.len()).sum();
        self.bytes.len().saturating_sub(cut) as u64
    }

    fn media(&self) -> impl Iterator<Item = &'a Medium> + use<'a> {
        self.cuts.iter().filter_map(|cut| cut.medium.as_ref())
    }
}

impl<'a> From<&'a [u8]> for Part<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, cuts: &[] }
    }
}

/// A prompt, in the order in which the engine reads it.
///
/// Its text is taken from the request's body unchanged, JSON escapes included. Equal prompts of
/// one client are equal bytes, and prefix matching needs no more. In place of a medium stand as
/// many bytes as the text of as many tokens has, and they follow from its content. So all that
/// counts in bytes or blocks counts media by their tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prompt<'a> {
    /// Media that come before the text.
    first: &'a [Medium],
    parts: [Part<'a>; 3],
    /// What keeps equal prompts apart in an engine's cache, hashed; 0 if nothing does.
    namespace: u64,
    media_tokens: MediaTokens,
    text_ratio: TextRatio,
    /// Length in bytes, media included.
    bytes: u64,
    /// Token ids that the text is; 0 if it is text.
    ids: u64,
    /// Tokens of the media.
    media: u64,
}

impl<'a> Prompt<'a> {
    /// Text, in up to three parts.
    #[inline]
    pub fn text(parts: [&'a [u8]; 3]) -> Self {
        Self::new(parts.map(Part::from))
    }

    /// Text and media, in up to three parts.
    #[inline]
    pub fn new(parts: [Part<'a>; 3]) -> Self {
        Self {
            parts,
            ..Self::default()
        }
        .measured()
    }

    /// Token ids as JSON lists.
    pub fn ids(list: &'a [u8]) -> Self {
        let commas: usize = list.iter().map(|byte| usize::from(*byte == b',')).sum();
        Self {
            parts: [list, b"", b""].map(Part::from),
            ids: commas as u64 + 1,
            ..Self::default()
        }
        .measured()
    }

    /// The same with media before the text; those and the ones within it have so many tokens.
    #[inline]
    #[must_use]
    pub fn with_media(mut self, first: &'a [Medium], tokens: MediaTokens) -> Self {
        (self.first, self.media_tokens) = (first, tokens);
        if !first.is_empty() || self.parts.iter().any(|part| !part.cuts.is_empty()) {
            self.measure();
        }
        self
    }

    /// The same, of a model whose tokens have so many bytes.
    #[inline]
    #[must_use]
    pub fn with_text_ratio(mut self, ratio: TextRatio) -> Self {
        self.text_ratio = ratio;
        self
    }

    /// Bytes of text, if it is nothing but text: an engine's count of its tokens says how long they are.
    pub fn only_text(&self) -> Option<u64> {
        (self.ids == 0 && !self.has_media()).then_some(self.bytes)
    }

    /// Whether some of it is media.
    pub(crate) fn has_media(&self) -> bool {
        !self.first.is_empty() || self.parts.iter().any(|part| part.media().next().is_some())
    }

    /// The same with labels that keep equal prompts apart in an engine's cache, such as a salt. An
    /// empty label is none.
    #[must_use]
    pub fn in_namespace(mut self, labels: [&[u8]; 4]) -> Self {
        if labels.iter().all(|label| label.is_empty()) {
            return self;
        }
        let mut hash = Xxh3::new();
        for label in labels {
            // With their lengths, so that the end of one label is not the beginning of the next.
            hash.update(&(label.len() as u64).to_le_bytes());
            hash.update(label);
        }
        self.namespace = hash.digest();
        self
    }

    /// What is mixed into the first hash of the prompt.
    pub(crate) fn namespace(&self) -> u64 {
        self.namespace
    }

    /// The bytes of the prompt in pieces; a medium is several.
    pub fn pieces(&self) -> Pieces<'_> {
        Pieces {
            prompt: self,
            first: self.first.iter(),
            parts: self.parts.iter(),
            rest: b"",
            at: 0,
            cuts: [].iter(),
            medium: None,
        }
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Length in tokens, estimated; 0 only for an empty prompt.
    pub fn tokens(&self) -> u64 {
        self.to_tokens(self.bytes)
    }

    /// The number of tokens in so many bytes of this prompt, estimated.
    pub fn to_tokens(&self, bytes: u64) -> u64 {
        if self.ids == 0 {
            self.text_ratio.to_tokens(bytes)
        } else {
            let tokens = self.ids + self.media;
            bytes.saturating_mul(tokens).div_ceil(self.bytes)
        }
    }

    /// The number of bytes in the first tokens, as many or about as many. Prompts that begin alike
    /// have the same: neither a learnt ratio, which changes, nor a mean of the whole prompt counts.
    pub(crate) fn first_bytes(&self, tokens: u64) -> u64 {
        if self.ids == 0 {
            return TextRatio::USUAL.to_bytes(tokens);
        }
        let media = self.first.iter();
        let media: u64 = media.map(|medium| self.media_tokens_of(medium)).sum();
        let ids = tokens.saturating_sub(media);
        let list = self.parts.first().map_or(b"".as_slice(), |part| part.bytes);
        let mut ends = (0..).zip(list).filter(|(_, byte)| **byte == b',');
        let ids_end = match usize::try_from(ids) {
            Ok(0) => 0,
            Ok(ids) => ends.nth(ids - 1).map_or(list.len() as u64, |(at, _)| at),
            Err(_) => list.len() as u64,
        };
        tokens.min(media).saturating_mul(ID_BYTES) + ids_end
    }

    fn measured(mut self) -> Self {
        self.measure();
        self
    }

    /// Sets the length.
    fn measure(&mut self) {
        let text: u64 = self.parts.iter().map(Part::text_len).sum();
        let media = || self.parts.iter().flat_map(Part::media).chain(self.first);
        let bytes: u64 = media().map(|medium| self.media_bytes(medium)).sum();
        self.media = media().map(|medium| self.media_tokens_of(medium)).sum();
        self.bytes = text + bytes;
    }

    fn media_tokens_of(&self, medium: &Medium) -> u64 {
        self.media_tokens.of(medium).into()
    }

    /// The bytes that stand for a medium. They follow neither the learnt ratio nor the prompt's ids,
    /// for equal media must stay equal.
    fn media_bytes(&self, medium: &Medium) -> u64 {
        let tokens = self.media_tokens_of(medium);
        if self.ids == 0 {
            TextRatio::USUAL.to_bytes(tokens)
        } else {
            tokens.saturating_mul(ID_BYTES)
        }
    }
}

/// The bytes of a prompt, piece by piece.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    prompt: &'a Prompt<'a>,
    first: slice::Iter<'a, Medium>,
    parts: slice::Iter<'a, Part<'a>>,
    /// What is left of the part.
    rest: &'a [u8],
    /// Where that begins in the part.
    at: usize,
    cuts: slice::Iter<'a, Cut>,
    /// The medium that is under way, and its bytes that are left.
    medium: Option<(&'a Medium, u64)>,
}

impl<'a> Pieces<'a> {
    fn begin(&mut self, medium: Option<&'a Medium>) {
        self.medium = medium.map(|medium| (medium, self.prompt.media_bytes(medium)));
    }

    /// The next bytes of the medium that is under way.
    fn medium_piece(&mut self) -> Option<&'a [u8]> {
        let (medium, left) = self.medium.as_mut()?;
        let piece = medium.piece(*left);
        *left -= piece.len() as u64;
        if *left == 0 {
            self.medium = None;
        }
        Some(piece)
    }

    /// The text before the next cut of this part, if there is one.
    fn text_before_cut(&mut self) -> Option<&'a [u8]> {
        let cut = self.cuts.next()?;
        let text = self.rest.get(..cut.range.start - self.at);
        self.rest = self.rest.get(cut.range.end - self.at..).unwrap_or_default();
        self.at = cut.range.end;
        self.begin(cut.medium.as_ref());
        text
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            if let Some(piece) = self.medium_piece() {
                return Some(piece);
            }
            if let Some(medium) = self.first.next() {
                self.begin(Some(medium));
            } else if let Some(text) = self.text_before_cut() {
                return Some(text);
            } else if !self.rest.is_empty() {
                return Some(std::mem::take(&mut self.rest));
            } else {
                let part = self.parts.next()?;
                (self.rest, self.at, self.cuts) = (part.bytes, 0, part.cuts.iter());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LearntRatio;
    use crate::medium::MediumKind::{Audio, Image};

    const CHARGES: MediaTokens = MediaTokens {
        image: 100,
        audio: 50,
        video: 0,
    };

    fn content(prompt: Prompt<'_>) -> Vec<u8> {
        prompt.pieces().collect::<Vec<_>>().concat()
    }

    #[test]
    fn tokens_are_estimated_by_kind_of_prompt() {
        assert_eq!(Prompt::text([b"12345678", b"9", b""]).tokens(), 3);
        assert_eq!(Prompt::ids(b"[128000, 271]").tokens(), 2);
        assert_eq!(Prompt::default().tokens(), 0);
    }

    #[test]
    fn token_ids_are_counted_whatever_their_digits() {
        for (list, count) in [("[[1,2],[30]]", 3), ("[7]", 1), ("[ 151643 , 9 ]", 2)] {
            let prompt = Prompt::ids(list.as_bytes());
            assert_eq!(prompt.tokens(), count, "{list}");
            assert_eq!(prompt.to_tokens(prompt.bytes()), count, "{list}");
        }
    }

    #[test]
    fn medium_weighs_its_tokens_and_not_its_bytes() {
        let body = [b"ask:".as_slice(), &[b'A'; 5000], b"what?..."].concat();
        let cuts = [Cut::medium(4..5004, Medium::new(Image, &body[4..5004]))];
        let parts = [Part::new(&body, &cuts), Part::default(), Part::default()];
        let prompt = Prompt::new(parts).with_media(&[], CHARGES);
        assert_eq!(prompt.tokens(), 1 + 100 + 2);
        let content = content(prompt);
        assert_eq!(content.len() as u64, prompt.bytes());
        assert!(content.starts_with(b"ask:") && content.ends_with(b"what?..."));
    }

    #[test]
    fn media_before_the_text_count_for_text_and_for_token_ids() {
        let media = [Medium::new(Image, b"one"), Medium::new(Audio, b"two")];
        let text = Prompt::text([b"12345678", b"", b""]).with_media(&media, CHARGES);
        assert_eq!(text.tokens(), 152);
        assert!(content(text).ends_with(b"12345678"));
        let ids = Prompt::ids(b"[100,200,300]").with_media(&media, CHARGES);
        assert_eq!(ids.tokens(), 153);
        assert_eq!(content(ids).len() as u64, ids.bytes());
    }

    #[test]
    fn prompts_that_begin_alike_have_the_same_first_bytes_whatever_follows() {
        let media = [Medium::new(Image, b"one")];
        for (tokens, of_text, of_ids, of_both) in [
            (0, 0, 0, 0),
            (1, 4, 2, 6),
            (2, 8, 6, 12),
            (101, 404, 9, 602),
            (102, 408, 9, 606),
        ] {
            let ratio = LearntRatio::default();
            (0..20).for_each(|_| ratio.observe(2000, 1000));
            let text = Prompt::text([b"12345678", b"", b""]);
            assert_eq!(text.first_bytes(tokens), of_text);
            let learnt = text.with_text_ratio(ratio.get());
            assert_eq!(learnt.first_bytes(tokens), of_text);
            let short = Prompt::ids(b"[1,234,5]");
            assert_eq!(short.first_bytes(tokens), of_ids, "{tokens} of the ids");
            let both = short.with_media(&media, CHARGES);
            assert_eq!(both.first_bytes(tokens), of_both, "{tokens} with a medium");
        }
        let long = Prompt::ids(b"[1,234,5,678901,234567]");
        assert_eq!(long.first_bytes(2), 6);
    }

    #[test]
    fn medium_before_token_ids_stays_equal_when_ids_follow() {
        let media = [Medium::new(Image, b"one")];
        let first = Prompt::ids(b"[1,2,3]").with_media(&media, CHARGES);
        let second = Prompt::ids(b"[1,2,3,151643,151644]").with_media(&media, CHARGES);
        let (first, second) = (content(first), content(second));
        assert!(second.starts_with(&first[..first.len() - 1]));
    }

    #[test]
    fn text_that_is_left_out_leaves_no_trace() {
        let cuts = [Cut::omitted(1..3)];
        let prompt = Prompt::new([
            Part::new(b"a--b", &cuts),
            Part::from(b"c".as_slice()),
            Part::default(),
        ]);
        assert_eq!(content(prompt), b"abc");
        assert_eq!(prompt.bytes(), 3);
    }

    #[test]
    fn medium_of_no_tokens_leaves_no_trace() {
        let media = [Medium::new(Image, b"one")];
        let free = MediaTokens {
            image: 0,
            ..CHARGES
        };
        let prompt = Prompt::text([b"abc", b"", b""]).with_media(&media, free);
        assert_eq!(content(prompt), b"abc");
    }
}
