//! What the tests share.

mod file;
mod gateway;
mod log;
mod workers;

pub(crate) use file::WatchedFile;
pub(crate) use gateway::{Running, aimed, circuit, options, start, start_with, touchy, uncaptured};
pub(crate) use testkit::{
    Client, DEADLINE, Received, Reply, Step, Worker, chat_stream, generate, get, head_of, json, ok,
    post, posting, raw, until,
};
pub(crate) use workers::{add, bare, send, shown, until_gone, until_status};
