//! Where in a body the fields are that routing reads.

use std::borrow::Cow;
use std::ops::Range;

use routing::{Cut, Medium, MediumKind};

use super::billing_header;
use super::json::{Scanner, Skip, SyntaxError, check_utf8};
use super::media::{MediaFinder, MediaList};
use crate::endpoint::PromptField;

/// The fields by their place in the body, so that they outlive the thread that read them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// The raw JSON of the field `model`.
    pub(super) model: Range<usize>,
    pub(super) stream: bool,
    fields: [FieldPlace; PromptField::COUNT],
    /// Of all fields.
    cuts: Vec<Cut>,
    /// Billing headers of coding agents; a field has at most one.
    billing_headers: Vec<(PromptField, Range<usize>)>,
    /// Media in fields of their own, by kind.
    pub(super) media: Vec<Medium>,
    /// Names of what one worker keeps.
    pub(super) states: Vec<(StateField, Range<usize>)>,
    /// What keeps equal prompts apart in SGLang's cache, by [`CacheLabel`].
    pub(super) labels: [Range<usize>; CacheLabel::COUNT],
}

/// Where the raw JSON of a field is, and which cuts are in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct FieldPlace {
    json: Range<usize>,
    cuts: Range<usize>,
}

/// A field that keeps equal prompts apart in SGLang's cache.
#[derive(Clone, Copy)]
pub(super) enum CacheLabel {
    LoraPath,
    CacheSalt,
    ExtraKey,
}

impl CacheLabel {
    pub(super) const COUNT: usize = Self::ExtraKey as usize + 1;
}

/// A field that names what one worker keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateField {
    PreviousResponse,
    /// Of `/close_session`.
    Session,
    /// An object, whose `id` is that of a session.
    SessionParams,
}

/// A field of a body.
enum Field {
    Model,
    Stream,
    Prompt(PromptField),
    Media(MediumKind),
    Label(CacheLabel),
    State(StateField),
    Other,
}

impl Field {
    fn named(name: &[u8]) -> Self {
        match name {
            b"model" => Self::Model,
            b"stream" => Self::Stream,
            b"messages" => Self::Prompt(PromptField::Messages),
            b"text" => Self::Prompt(PromptField::Text),
            b"input_ids" => Self::Prompt(PromptField::InputIds),
            b"prompt" => Self::Prompt(PromptField::Prompt),
            b"input" => Self::Prompt(PromptField::Input),
            b"query" => Self::Prompt(PromptField::Query),
            b"documents" => Self::Prompt(PromptField::Documents),
            b"items" => Self::Prompt(PromptField::Items),
            b"instructions" => Self::Prompt(PromptField::Instructions),
            b"system" => Self::Prompt(PromptField::System),
            b"tools" => Self::Prompt(PromptField::Tools),
            b"image_data" | b"images" => Self::Media(MediumKind::Image),
            b"video_data" => Self::Media(MediumKind::Video),
            b"audio_data" => Self::Media(MediumKind::Audio),
            b"lora_path" => Self::Label(CacheLabel::LoraPath),
            b"cache_salt" => Self::Label(CacheLabel::CacheSalt),
            b"extra_key" => Self::Label(CacheLabel::ExtraKey),
            b"previous_response_id" => Self::State(StateField::PreviousResponse),
            b"session_id" => Self::State(StateField::Session),
            b"session_params" => Self::State(StateField::SessionParams),
            _ => Self::Other,
        }
    }
}

impl Layout {
    /// Reads a JSON object.
    pub(super) fn read(body: &[u8]) -> Result<Self, SyntaxError> {
        let mut layout = Self::default();
        layout.fill(body)?;
        Ok(layout)
    }

    pub(super) fn fill(&mut self, body: &[u8]) -> Result<(), SyntaxError> {
        check_utf8(body)?;
        let mut scanner = Scanner::new(body);
        scanner.expect(b'{', "expected '{'")?;
        if !scanner.pass(b'}') {
            loop {
                let name = scanner.key()?;
                let name = decoded(scanner.slice(name));
                self.read_member(&Field::named(&name), &mut scanner)?;
                if !scanner.pass(b',') {
                    break;
                }
            }
            scanner.expect(b'}', "expected ',' or '}'")?;
        }
        scanner.expect_end()
    }

    /// The place of a field's raw JSON, and what of it is no text. The place is empty for a field
    /// that is absent or null.
    pub(super) fn field(&self, field: PromptField) -> (Range<usize>, &[Cut]) {
        self.fields
            .get(field as usize)
            .map_or((0..0, &[]), |place| {
                let cuts = self.cuts.get(place.cuts.clone());
                (place.json.clone(), cuts.unwrap_or_default())
            })
    }

    /// The place of the billing header that a field begins with.
    pub(super) fn billing_header(&self, field: PromptField) -> Option<Range<usize>> {
        let mut headers = self.billing_headers.iter();
        let found = headers.find(|(its_field, _)| *its_field == field);
        found.map(|(_, place)| place.clone())
    }

    /// The place of what keeps equal prompts apart; a string's without its quotes.
    pub(super) fn label(&self, label: CacheLabel) -> Range<usize> {
        let known = self.labels.get(label as usize);
        known.cloned().unwrap_or_default()
    }

    /// A field of an unexpected type is the worker's to judge: here it counts as absent.
    /// Of a repeated field the last one counts, as in Python.
    fn read_member(&mut self, field: &Field, scanner: &mut Scanner<'_>) -> Result<(), SyntaxError> {
        match *field {
            Field::Prompt(PromptField::Text | PromptField::InputIds | PromptField::Tools)
            | Field::Model
            | Field::Stream
            | Field::Label(_)
            | Field::State(_)
            | Field::Other => {
                let value = scanner.value(&mut Skip)?;
                self.set(field, scanner.slice(value.clone()), value);
            }
            Field::Prompt(field) => self.read_messages(field, scanner)?,
            Field::Media(kind) => self.read_media(kind, scanner)?,
        }
        Ok(())
    }

    fn set(&mut self, field: &Field, json: &[u8], value: Range<usize>) {
        match *field {
            Field::Model => self.model = value,
            Field::Stream => self.stream = matches!(json, b"true" | b"1"),
            Field::Prompt(field) => self.set_prompt(field, json, value),
            Field::Label(label) => {
                if let Some(known) = self.labels.get_mut(label as usize) {
                    *known = match json {
                        b"null" => 0..0,
                        // Without quotes, for an empty string is no label.
                        [b'"', ..] => value.start + 1..value.end - 1,
                        _ => value,
                    };
                }
            }
            Field::State(field) => {
                self.states.retain(|(known, _)| *known != field);
                self.states.push((field, value));
            }
            Field::Media(_) | Field::Other => {}
        }
    }

    /// A field without cuts.
    fn set_prompt(&mut self, field: PromptField, json: &[u8], value: Range<usize>) {
        if let Some(known) = self.fields.get_mut(field as usize) {
            *known = FieldPlace {
                json: if json == b"null" { 0..0 } else { value },
                cuts: 0..0,
            };
        }
    }

    /// Reads a field that may have media in it.
    fn read_messages(
        &mut self,
        field: PromptField,
        scanner: &mut Scanner<'_>,
    ) -> Result<(), SyntaxError> {
        let first = self.cuts.len();
        let mut finder = MediaFinder::new(scanner, &mut self.cuts);
        let value = scanner.value(&mut finder)?;
        let billing_header = finder.billing_header;
        let json = scanner.slice(value.clone());
        let start = value.start;
        self.set_prompt(field, json, value);
        self.billing_headers
            .retain(|(its_field, _)| *its_field != field);
        if billing_header {
            let found = match field {
                PromptField::Messages | PromptField::Input => billing_header::in_messages(json),
                _ => billing_header::in_system(json),
            };
            if let Some(found) = found {
                let place = start + found.start..start + found.end;
                self.billing_headers.push((field, place));
                self.omit(first, found);
            }
        }
        if let Some(place) = self.fields.get_mut(field as usize) {
            place.cuts = first..self.cuts.len();
        }
        Ok(())
    }

    /// Leaves `omitted` out, and cuts from `first` on that are within it.
    fn omit(&mut self, first: usize, omitted: Range<usize>) {
        let mut cuts = self.cuts.split_off(first);
        cuts.retain(|cut| !omitted.contains(&cut.range().start));
        let at = cuts.partition_point(|cut| cut.range().start < omitted.start);
        cuts.insert(at, Cut::omitted(omitted));
        self.cuts.append(&mut cuts);
    }

    /// Reads a field that holds only media. Whatever it holds, its content distinguishes it.
    fn read_media(
        &mut self,
        kind: MediumKind,
        scanner: &mut Scanner<'_>,
    ) -> Result<(), SyntaxError> {
        self.media.retain(|medium| medium.kind() != kind);
        let known = self.media.len();
        let mut list = MediaList::new(scanner, kind, &mut self.media);
        let value = scanner.value(&mut list)?;
        let json = scanner.slice(value);
        let is_empty = matches!(json, b"null" | b"[]" | b"{}" | b"\"\"");
        if self.media.len() == known && !is_empty {
            self.media.push(Medium::new(kind, json));
        }
        self.media.sort_by_key(Medium::kind);
        Ok(())
    }
}

/// A member's name without escapes.
fn decoded(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.contains(&b'\\') {
        return Cow::Borrowed(name);
    }
    let quoted = [b"\"", name, b"\""].concat();
    let name = serde_json::from_slice::<String>(&quoted);
    // A name with half a surrogate pair is none that is sought.
    Cow::Owned(name.unwrap_or_default().into_bytes())
}
