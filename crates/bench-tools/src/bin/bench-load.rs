//! Sends load to a gateway on this machine and prints the result as JSON:
//! `bench-load '{"port": 30000, "connections": 64, "seconds": 4, "pids": [1234]}'`.

use std::error::Error;
use std::io::{Write, stdout};

use bench_tools::load::{LoadOptions, run};
use tokio::runtime::Builder;

fn main() -> Result<(), Box<dyn Error>> {
    let json = std::env::args().nth(1).unwrap_or_default();
    let options = LoadOptions::from_json(&json)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(run(&options))?;
    writeln!(stdout(), "{}", serde_json::to_string(&report)?)?;
    Ok(())
}
