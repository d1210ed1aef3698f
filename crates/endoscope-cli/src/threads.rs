//! The number of threads.

use anyhow::{Context, Result};

/// Both thread pools, rayon's and candle's, read the same variable when they start, and nothing else.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// How many threads rayon has in a process in which candle has one.
const RAYON_ALONE: &str = "ENDOSCOPE_RAYON_THREADS";

/// How many threads candle's pool for elementwise operations has, where it is not as many as rayon has.
const CANDLE: (&str, &str) = ("CANDLE_NUM_THREADS", "1");

/// The allocator keeps what is freed: a training step frees and takes the same memory again and again, and fresh pages would be
/// a fifth of its time.
const KEPT: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "-1");

/// For training: candle's elementwise operations on one thread, because those of its pool wait for each other spinning; products and
/// our kernels on all of rayon's. The process begins again, unless the variable was set by whoever started it.
pub fn for_training() -> Result<()> {
    match std::env::var(CANDLE.0) {
        Ok(_) => Ok(()),
        Err(_) => begin_again(&[CANDLE, KEPT]),
    }
}

/// Computes with `threads` threads: the process begins again with the variable set, before any pool has started.
pub fn use_only(threads: Option<u32>) -> Result<()> {
    let Some(threads) = threads.map(|threads| threads.to_string()) else { return Ok(()) };
    if std::env::var(RAYON_ALONE).is_ok() || std::env::var(VARIABLE).is_ok_and(|set| set == threads) {
        return Ok(());
    }
    begin_again(&[(VARIABLE, &threads)])
}

/// For work that does several things side by side: one thread for candle, all for rayon. The threads of candle's pool wait for each
/// other spinning, and there is one pool for all, so that models which are trained side by side would spend half of the time waiting.
pub fn side_by_side() -> Result<()> {
    match std::env::var(RAYON_ALONE) {
        Ok(threads) => {
            let threads =
                threads.parse().with_context(|| format!("{RAYON_ALONE} is {threads:?}, which is no number"))?;
            Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?)
        }
        Err(_) => {
            let set = std::env::var(VARIABLE).ok().and_then(|set| set.parse().ok()).filter(|&set: &usize| set > 0);
            let threads = set.map_or_else(|| std::thread::available_parallelism().map(usize::from), Ok)?;
            begin_again(&[(VARIABLE, "1"), (RAYON_ALONE, &threads.to_string()), KEPT])
        }
    }
}

#[cfg(unix)]
fn begin_again(variables: &[(&str, &str)]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    // Returns only if it fails.
    let error = again(variables)?.exec();
    Err(error.into())
}

#[cfg(not(unix))]
fn begin_again(variables: &[(&str, &str)]) -> Result<()> {
    let status = again(variables)?.status()?;
    std::process::exit(status.code().unwrap_or(1));
}

fn again(variables: &[(&str, &str)]) -> Result<std::process::Command> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).envs(variables.iter().copied());
    Ok(command)
}
