//! Workers that fail, and whose fault it was.

mod blame;
mod breakers;
mod chaos;
mod fleet_health;
mod retries;
mod worker_faults;
