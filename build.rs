//! Tells the binding how it was built; `get_verbose_version_string` shows it.

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // A watched file that does not exist would mean a rebuild every time.
    if Path::new(".git/HEAD").exists() {
        println!("cargo::rerun-if-changed=.git/HEAD");
    }
    let facts = [
        ("BUILD_TIME", utc(build_seconds())),
        ("BUILD_MODE", variable("PROFILE")),
        ("BUILD_TARGET", variable("TARGET")),
        ("BUILD_RUSTC", output(&variable("RUSTC"), &["--version"])),
        ("BUILD_CARGO", output(&variable("CARGO"), &["--version"])),
        (
            "BUILD_BRANCH",
            output("git", &["rev-parse", "--abbrev-ref", "HEAD"]),
        ),
        (
            "BUILD_COMMIT",
            output("git", &["rev-parse", "--short=12", "HEAD"]),
        ),
        ("BUILD_STATUS", git_status()),
    ];
    for (name, value) in facts {
        println!("cargo::rustc-env={name}={value}");
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| "unknown".to_owned())
}

/// First line of a command's output; `None` when it cannot be run or fails.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next().unwrap_or_default().to_owned();
    output.status.success().then_some(line)
}

fn output(program: &str, arguments: &[&str]) -> String {
    run(program, arguments)
        .filter(|line| !line.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}

fn git_status() -> String {
    let changes = run("git", &["status", "--porcelain", "--untracked-files=no"]);
    match changes.as_deref() {
        Some("") => "clean".to_owned(),
        Some(_) => "modified".to_owned(),
        None => "unknown".to_owned(),
    }
}

fn build_seconds() -> u64 {
    let pinned = env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|text| text.parse().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).ok();
    pinned.unwrap_or_else(|| now().map_or(0, |since| since.as_secs()))
}

/// Seconds since 1970 as `2026-01-31 12:00:00 UTC` (civil-from-days, proleptic Gregorian).
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468; // day 0 is 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}
