//! Runs one worker until killed and prints its URL: `serve '{"port": 30001, "model": "m"}'`.
#![expect(clippy::print_stdout, reason = "a command line tool")]

use std::error::Error;
use std::time::Duration;

use sim::{SimOptions, SimWorker};

const A_DAY: Duration = Duration::from_hours(24);

fn main() -> Result<(), Box<dyn Error>> {
    let json = std::env::args().nth(1).unwrap_or_else(|| "{}".to_owned());
    let options: SimOptions = serde_json::from_str(&json)?;
    let worker = SimWorker::start(options)?;
    println!("{}", worker.url());
    while !worker.wait(A_DAY) {}
    Ok(())
}
