//! Waiting for a state instead of for a time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::limits;

/// Asks again and again until `probe` has a value. An error of the probe counts as "not yet" and is told at the end.
///
/// # Errors
/// When `timeout` has passed; the error says what was waited for and why the last try was not enough.
pub fn until<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() >= timeout {
            return match last {
                Some(error) => Err(error).with_context(|| format!("waited {timeout:?} for {what}")),
                None => bail!("waited {timeout:?} for {what}"),
            };
        }
        std::thread::sleep(limits::POLL_INTERVAL);
    }
}
