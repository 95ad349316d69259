//! Durations as Gateway API writes them (GEP-2257): one to four numbers of at most five digits, each with `h`, `m`, `s` or `ms`.

use std::time::Duration;

use crate::decode::{self, FieldError, Problems};

/// Numbers in one duration.
const PARTS_MAX: usize = 4;
/// Digits of one number.
const DIGITS_MAX: usize = 5;
/// The same as an API server checks it.
pub(crate) const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// Reads one that must lie between two others; a problem otherwise.
pub(super) fn between(
    text: &str,
    (least, most): (Duration, Duration),
    field: &str,
    problems: &mut Problems,
) -> Option<Duration> {
    let Some(duration) = read(text) else {
        let message = format!(
            "{} is no duration: one to four numbers of at most five digits, each with h, m, s or ms (GEP-2257), such as 1m30s",
            decode::quoted(text)
        );
        problems.push(FieldError::new(field, message));
        return None;
    };
    if duration < least || duration > most {
        let message =
            format!("{text} is out of range: it must be {} s to {} s", least.as_secs_f64(), most.as_secs_f64());
        problems.push(FieldError::new(field, message));
        return None;
    }
    Some(duration)
}

fn read(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    for _ in 0..PARTS_MAX {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > DIGITS_MAX {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
        let (behind, millis) = units.into_iter().find_map(|(unit, millis)| Some((rest.strip_prefix(unit)?, millis)))?;
        total += Duration::from_millis(number * millis);
        rest = behind;
        if rest.is_empty() {
            return Some(total);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_durations_of_gateway_api_are_durations() {
        for (text, millis) in [
            ("0s", 0),
            ("10ms", 10),
            ("1h2m3s4ms", 3_723_004),
            ("99999h", 359_996_400_000),
            ("1s1s", 2000),
            ("007s", 7000),
        ] {
            assert_eq!(read(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "1",
            "s",
            "1.5s",
            "-1s",
            "+1s",
            "1S",
            "1 s",
            " 1s",
            "1s ",
            "100000s",
            "1d",
            "1us",
            "1s1s1s1s1s",
            "1s1",
            "\u{661}s",
            "infinity",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
