//! Durations of weft's own kinds: written as in Gateway API, and within a range.

use std::time::Duration;

use crate::{
    decode::{FieldError, Problems},
    gateway::duration,
};

/// How one is written, as an API server checks it.
pub(crate) const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// Reads one that must lie between two others; a problem otherwise.
pub(super) fn between(
    text: &str,
    (least, most): (Duration, Duration),
    field: &str,
    problems: &mut Problems,
) -> Option<Duration> {
    let duration = match duration::parse(text) {
        Ok(duration) => duration,
        Err(message) => {
            problems.push(FieldError::new(field, message));
            return None;
        }
    };
    if duration < least || duration > most {
        let message =
            format!("{text} is out of range: it must be {} s to {} s", least.as_secs_f64(), most.as_secs_f64());
        problems.push(FieldError::new(field, message));
        return None;
    }
    Some(duration)
}
