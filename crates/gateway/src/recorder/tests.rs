//! What is written, over files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prometheus::IntCounter;
use serde_json::Value;
use tokio::time::Instant;

use super::file::RecordFile;
use super::record::{Record, RecordedPrompt};
use super::writer::{Output, RecordCounters};
use crate::config::RecordSection;

/// A request without a prompt.
pub(super) fn record() -> Record {
    Record {
        arrived: Instant::now(),
        endpoint: "/v1/chat/completions",
        worker: None,
        policy: "",
        streaming: true,
        prompt: None,
        key: None,
        status: 200,
        failed_attempts: 0,
        cancelled: false,
        first_byte: Some(Duration::from_micros(1500)),
        total: Duration::from_millis(9),
        prompt_tokens: None,
        cached_tokens: None,
        output_tokens: 5,
    }
}

fn with_prompt() -> Record {
    Record {
        worker: Some(("m".into(), "http://w".into())),
        prompt: Some(Box::new(RecordedPrompt {
            bytes: 6000,
            tokens: 1500,
            max_tokens: None,
            session: None,
            chain: vec![1, 2, 3],
        })),
        ..record()
    }
}

fn counters() -> RecordCounters {
    let counter = || IntCounter::new("records", "records").unwrap();
    RecordCounters {
        written: counter(),
        sampled_out: counter(),
        queue_full: counter(),
        not_written: counter(),
    }
}

/// A recording in a directory of its own.
struct Recording {
    dir: PathBuf,
    section: RecordSection,
    counters: RecordCounters,
    output: Output,
}

impl Recording {
    fn new(file_bytes: u64, files: u64) -> Self {
        let dir = std::env::temp_dir().join(format!("smg-record-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&dir).unwrap();
        let section = RecordSection {
            path: dir.join("trace.jsonl"),
            file_bytes,
            files,
            sample: 1.0,
            block_tokens: 512,
        };
        let counters = counters();
        let output = Output::new(section.clone(), counters.clone()).unwrap();
        Self {
            dir,
            section,
            counters,
            output,
        }
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(&self.dir).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        entries.map(|entry| name(entry.unwrap())).collect()
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        lines(&self.dir.join(name))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let parsed = |line| serde_json::from_str(line).unwrap();
    text.lines().map(parsed).collect()
}

#[test]
fn first_line_of_a_file_says_what_holds_for_all() {
    let mut recording = Recording::new(1 << 20, 3);
    recording.output.write(&[with_prompt(), with_prompt()]);
    recording.output.write(&[with_prompt()]);
    let lines = recording.lines("trace.jsonl");
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["recording"]["block_tokens"], 512);
    assert_eq!(lines[0]["recording"]["block_bytes"], 2048);
    assert!(
        lines[1..]
            .iter()
            .all(|line| line.get("recording").is_none())
    );
    assert_eq!(lines[0]["hash_ids"], lines[2]["hash_ids"]);
    assert_eq!(recording.counters.written.get(), 3);
}

#[test]
fn files_are_bounded_in_size_and_number_and_share_no_hash() {
    let mut recording = Recording::new(2000, 3);
    for _ in 0..50 {
        recording.output.write(&[with_prompt(), with_prompt()]);
    }
    let names = ["trace.jsonl", "trace.jsonl.1", "trace.jsonl.2"];
    assert_eq!(recording.names(), names.map(String::from).into());
    let mut hashes = BTreeSet::new();
    for name in names {
        let size = fs::metadata(recording.dir.join(name)).unwrap().len();
        assert!(size <= 2000, "{name}: {size}");
        let lines = recording.lines(name);
        assert!(lines[0].get("recording").is_some());
        hashes.insert(lines[0]["hash_ids"].to_string());
    }
    assert_eq!(hashes.len(), names.len());
    assert_eq!(recording.counters.written.get(), 100);
}

#[tokio::test(start_paused = true)]
async fn gateway_that_is_replaced_goes_on_in_its_file_and_its_successor_in_a_new_one() {
    let mut old = Recording::new(2000, 3);
    old.output.write(&[with_prompt()]);
    let mut successor = Output::new(old.section.clone(), counters()).unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    successor.write(&[with_prompt()]);
    old.output.write(&[with_prompt()]);
    assert_eq!(old.lines("trace.jsonl").len(), 1);
    assert_eq!(old.lines("trace.jsonl.1").len(), 2);
    // Nor does it take the place of its successor once its own file is full.
    while old.counters.not_written.get() == 0 {
        old.output.write(&[with_prompt()]);
    }
    assert_eq!(old.lines("trace.jsonl").len(), 1);
    // Without a line there is nothing to keep.
    drop(successor);
    drop(Output::new(old.section.clone(), counters()).unwrap());
    drop(Output::new(old.section.clone(), counters()).unwrap());
    let names = ["trace.jsonl", "trace.jsonl.1", "trace.jsonl.2"];
    assert_eq!(old.names(), names.map(String::from).into());
    assert!(old.lines("trace.jsonl.2").len() >= 2);
}

#[test]
fn one_file_alone_begins_anew() {
    let mut recording = Recording::new(1000, 1);
    for _ in 0..20 {
        recording.output.write(&[with_prompt()]);
    }
    assert_eq!(recording.names(), ["trace.jsonl".to_owned()].into());
    assert!(!recording.lines("trace.jsonl").is_empty());
}

#[tokio::test(start_paused = true)]
async fn directory_that_is_gone_is_counted_and_recording_goes_on_once_it_is_back() {
    let mut recording = Recording::new(1 << 20, 3);
    recording.output.write(&[with_prompt()]);
    let away = recording.dir.with_extension("away");
    fs::rename(&recording.dir, &away).unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    recording.output.write(&[with_prompt(), with_prompt()]);
    assert_eq!(recording.counters.not_written.get(), 2);
    fs::create_dir(&recording.dir).unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    recording.output.write(&[with_prompt()]);
    assert_eq!(recording.counters.written.get(), 2);
    let lines = recording.lines("trace.jsonl");
    assert!(lines.len() == 1 && lines[0].get("recording").is_some());
    fs::remove_dir_all(&away).unwrap();
}

#[test]
fn lines_that_a_full_disk_does_not_take_are_counted() {
    let mut recording = Recording::new(1 << 20, 3);
    recording.output.set_file(RecordFile::on_full_disk());
    recording.output.write(&[with_prompt(), with_prompt()]);
    assert_eq!(recording.counters.not_written.get(), 2);
    assert_eq!(recording.counters.written.get(), 0);
}
