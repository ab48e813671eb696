//! Start and stop, and what is written meanwhile.

mod access_log;
mod logs;
mod record;
mod shutdown;
