//! The thread that writes what lanes leave.

use std::io;
use std::time::Duration;

use prometheus::IntCounter;
use routing::prefix::{BLOCK, ChainBlock};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;
use tracing::{info, warn};

use super::file::{Place, RecordFile};
use super::line::{BYTES_PER_TOKEN, Line, LineContext, Recording};
use super::record::Record;
use super::sampler::Sampler;
use super::shards::Recorder;
use crate::config::RecordSection;
use crate::writer_thread::WriterThread;

/// Between two looks whether the file still has its name, and between two attempts at a new one.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Text that is written at once, bytes.
const BATCH: usize = 256 * 1024;
const VERSION: u32 = 1;

/// The counts of what becomes of requests that have ended.
#[derive(Clone, Debug)]
pub(crate) struct RecordCounters {
    pub(crate) written: IntCounter,
    pub(crate) sampled_out: IntCounter,
    pub(crate) queue_full: IntCounter,
    pub(crate) not_written: IntCounter,
}

/// What the thread works with.
#[derive(Debug)]
pub(super) struct Output {
    section: RecordSection,
    counters: RecordCounters,
    sampler: Sampler,
    recording: Recording,
    began: Instant,
    file: Option<RecordFile>,
    /// When the file is looked at again.
    next_check: Instant,
    /// The last attempt to write has failed.
    is_broken: bool,
    text: Vec<u8>,
    /// Lines of the text.
    lines: u64,
}

/// Begins a file, and starts the thread that writes to it.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn start(
    section: RecordSection,
    counters: RecordCounters,
) -> io::Result<(Recorder, WriterThread)> {
    let block = section.block_tokens * BYTES_PER_TOKEN;
    let block = ChainBlock::of(block as usize / BLOCK);
    let recorder = Recorder::new(block, counters.queue_full.clone());
    let mut output = Output::new(section, counters)?;
    let (taken, mut batch) = (recorder.clone(), Vec::new());
    let writer = WriterThread::start("smg-recorder", move || {
        taken.take(&mut batch, |records| output.write(records));
    })?;
    Ok((recorder, writer))
}

impl Output {
    /// Begins a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn new(section: RecordSection, counters: RecordCounters) -> io::Result<Self> {
        let now = OffsetDateTime::now_utc();
        Ok(Self {
            recording: Recording {
                version: VERSION,
                block_tokens: section.block_tokens,
                block_bytes: section.block_tokens * BYTES_PER_TOKEN,
                sample: section.sample,
                // Every time of these years can be written so.
                began: now.format(&Rfc3339).unwrap_or_default(),
            },
            began: Instant::now(),
            file: Some(RecordFile::begin(&section)?),
            sampler: Sampler::new(section.sample)?,
            next_check: Instant::now() + CHECK_INTERVAL,
            section,
            counters,
            is_broken: false,
            text: Vec::new(),
            lines: 0,
        })
    }

    #[cfg(test)]
    pub(super) fn set_file(&mut self, file: RecordFile) {
        self.file = Some(file);
    }

    /// Writes those that are to be recorded.
    pub(super) fn write(&mut self, records: &[Record]) {
        self.check_file();
        for record in records {
            if !self.sampler.takes(record) {
                self.counters.sampled_out.inc();
            } else if self.add(record).is_none() {
                self.counters.not_written.inc();
            }
        }
        self.flush();
    }

    /// Begins another file where the one that was written has lost its name, or there is none. A file
    /// whose place another process has taken is written to its end: a gateway that is being replaced
    /// still has requests.
    fn check_file(&mut self) {
        let now = Instant::now();
        if now < self.next_check {
            return;
        }
        self.next_check = now + CHECK_INTERVAL;
        let path = &self.section.path;
        let place = self.file.as_ref().map(|file| file.place(path));
        if !matches!(place, Some(Place::Own | Place::Taken)) {
            self.begin_file();
        }
    }

    fn begin_file(&mut self) {
        // Closed first: a file that this one writes is not another process's.
        self.file = None;
        match RecordFile::follow(&self.section) {
            Ok(file) => self.file = Some(file),
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &io::Error) {
        if !self.is_broken {
            let path = self.section.path.display();
            warn!(%error, %path, "requests cannot be recorded");
        }
        self.is_broken = true;
    }

    /// Adds the line of a request to the text; `None` where there is no file.
    fn add(&mut self, record: &Record) -> Option<()> {
        let before = self.text.len();
        self.append(record)?;
        let line = self.text.len() - before;
        let size = self.file.as_ref()?.size();
        let limit = self.section.file_bytes;
        if size + (before + line) as u64 > limit && size + before as u64 > 0 {
            // The file is full, and another one has another salt.
            self.text.truncate(before);
            self.flush();
            self.begin_file();
            self.append(record)?;
        }
        self.lines += 1;
        if self.text.len() >= BATCH {
            self.flush();
        }
        Some(())
    }

    fn append(&mut self, record: &Record) -> Option<()> {
        let file = self.file.as_mut()?;
        let worker = record.worker.as_ref();
        let worker = worker.map(|(_, worker)| file.number_of(worker));
        let is_first = file.size() == 0 && self.text.is_empty();
        let context = LineContext {
            salt: &file.salt,
            block_tokens: self.section.block_tokens,
            arrived: record.arrived.saturating_duration_since(self.began),
            worker,
            recording: Some(&self.recording).filter(|_| is_first),
        };
        // Writing to a list does not fail, nor has the line keys that are no text.
        let line = Line::new(record, &context);
        serde_json::to_writer(&mut self.text, &line).ok()?;
        self.text.push(b'\n');
        Some(())
    }

    /// Writes the text.
    fn flush(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines > 0
            && let Some(file) = &mut self.file
        {
            match file.write(&self.text) {
                Ok(()) => {
                    self.counters.written.inc_by(lines);
                    if std::mem::take(&mut self.is_broken) {
                        let path = self.section.path.display();
                        info!(%path, "requests are recorded again");
                    }
                }
                Err(error) => {
                    self.counters.not_written.inc_by(lines);
                    self.fail(&error);
                }
            }
        }
        self.text.clear();
    }
}
