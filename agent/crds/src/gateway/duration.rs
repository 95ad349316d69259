//! Durations as Gateway API writes them (GEP-2257): one to four numbers of at most five digits, each with `h`, `m`, `s` or `ms`.

use std::time::Duration;

/// Numbers in one duration.
const PARTS_MAX: usize = 4;
/// Digits of one number.
const DIGITS_MAX: usize = 5;

/// Reads one.
///
/// # Errors
/// When it is not written so; the message says what is expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "{} is no duration: one to four numbers of at most five digits, each with h, m, s or ms (GEP-2257), such as 1m30s",
            crate::decode::quoted(text)
        )
    };
    let mut rest = text;
    let mut total = Duration::ZERO;
    for _ in 0..PARTS_MAX {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > DIGITS_MAX {
            return Err(wrong());
        }
        let (number, behind) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let (millis, behind) = if let Some(behind) = behind.strip_prefix("ms") {
            (1, behind)
        } else if let Some(behind) = behind.strip_prefix('s') {
            (1000, behind)
        } else if let Some(behind) = behind.strip_prefix('m') {
            (60_000, behind)
        } else if let Some(behind) = behind.strip_prefix('h') {
            (3_600_000, behind)
        } else {
            return Err(wrong());
        };
        total += Duration::from_millis(number * millis);
        rest = behind;
        if rest.is_empty() {
            return Ok(total);
        }
    }
    Err(wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_gateway_api_are_read() {
        for (text, millis) in [
            ("0s", 0),
            ("10s", 10_000),
            ("1h", 3_600_000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("30s1m", 90_000),
            ("2h45m10s5ms", 9_910_005),
            ("99999h", 359_996_400_000),
            ("1s1s", 2000),
            ("007s", 7000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn every_other_spelling_is_refused() {
        for text in [
            "",
            "0",
            "1",
            "s",
            "1.5s",
            "-1s",
            "+1s",
            "1 s",
            " 1s",
            "1s ",
            "1S",
            "1us",
            "1d",
            "100000s",
            "1s1s1s1s1s",
            "1sm",
            "1s1",
            "infinity",
            "1e3s",
            "١s",
        ] {
            assert!(parse(text).is_err_and(|error| error.contains("GEP-2257")), "{text}");
        }
    }
}
