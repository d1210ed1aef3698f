//! The number of threads.

use anyhow::Result;

/// Both thread pools, rayon's and candle's, read the same variable when they start, and nothing else.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Computes with `threads` threads: the process begins again with the variable set, before any pool has started.
pub fn use_only(threads: Option<u32>) -> Result<()> {
    let Some(threads) = threads.map(|threads| threads.to_string()) else { return Ok(()) };
    if std::env::var(VARIABLE).is_ok_and(|set| set == threads) {
        return Ok(());
    }
    begin_again(&threads)
}

#[cfg(unix)]
fn begin_again(threads: &str) -> Result<()> {
    use std::os::unix::process::CommandExt;
    // Returns only if it fails.
    let error = again(threads)?.exec();
    Err(error.into())
}

#[cfg(not(unix))]
fn begin_again(threads: &str) -> Result<()> {
    let status = again(threads)?.status()?;
    std::process::exit(status.code().unwrap_or(1));
}

fn again(threads: &str) -> Result<std::process::Command> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).env(VARIABLE, threads);
    Ok(command)
}
