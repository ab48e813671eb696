//! Runs mock workers on this machine and prints their ports as JSON once they listen:
//! `bench-worker '{"ports": [9101, 9102], "chunks": 100, "interval_us": 20000}'`.

use std::error::Error;
use std::io::{Write, stdout};

use bench_tools::worker::{WorkerOptions, bind};
use tokio::runtime::Builder;

fn main() -> Result<(), Box<dyn Error>> {
    let json = std::env::args().nth(1).unwrap_or_default();
    let options = WorkerOptions::from_json(&json)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let workers = bind(&options)?;
        writeln!(stdout(), "{}", serde_json::to_string(&workers.ports()?)?)?;
        stdout().flush()?;
        workers.serve().await;
        Ok(())
    })
}
