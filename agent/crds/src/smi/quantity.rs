//! Kubernetes quantities in exact thousandths: the weights of TrafficSplit v1alpha1 (`900m`, `1`, `0.5`).

use serde_json::Value;

/// Why something is not a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// No number with a known suffix.
    #[error("is no quantity")]
    Syntax,
    /// Below zero.
    #[error("must not be negative")]
    Negative,
    /// Has a part below a thousandth.
    #[error("is finer than a thousandth")]
    TooFine,
    /// Does not fit.
    #[error("is too large")]
    TooLarge,
}

/// A JSON string or number in thousandths.
///
/// # Errors
/// When it is no quantity, negative, or not a whole number of thousandths.
pub fn milli_of_json(value: &Value) -> Result<u64, QuantityError> {
    match value {
        Value::String(text) => milli(text),
        Value::Number(number) => milli(&number.to_string()),
        _ => Err(QuantityError::Syntax),
    }
}

/// A quantity in thousandths.
///
/// # Errors
/// When it is no quantity, negative, or not a whole number of thousandths.
pub fn milli(text: &str) -> Result<u64, QuantityError> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(QuantityError::Syntax);
    }
    let (ten, two) = scale(suffix).ok_or(QuantityError::Syntax)?;
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return Ok(0);
    }
    if negative {
        return Err(QuantityError::Negative);
    }
    let zeros = digits.len() - digits.trim_end_matches('0').len();
    // Thousandths = significant x 10^ten x 2^two, with ten counting the zeros that were cut off and the places of the fraction.
    let ten = ten.saturating_add(3 + signed(zeros) - signed(fraction.len()));
    let significant: u128 =
        significant.parse().map_err(|_| if ten < -38 { QuantityError::TooFine } else { QuantityError::TooLarge })?;
    let scaled =
        significant.checked_shl(two).filter(|scaled| scaled >> two == significant).ok_or(QuantityError::TooLarge)?;
    let power = u32::try_from(ten.unsigned_abs()).ok().and_then(|power| 10u128.checked_pow(power));
    let result = if ten >= 0 {
        power.and_then(|power| scaled.checked_mul(power)).ok_or(QuantityError::TooLarge)?
    } else {
        power.and_then(|power| (scaled % power == 0).then(|| scaled / power)).ok_or(QuantityError::TooFine)?
    };
    u64::try_from(result).map_err(|_| QuantityError::TooLarge)
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX / 4)
}

/// The power of ten and of two that a suffix stands for.
fn scale(suffix: &str) -> Option<(i64, u32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            // What does not fit here is far outside of any weight; the sign decides which error it becomes.
            let size = digits.parse::<i64>().unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
            (if exponent.starts_with('-') { -size } else { size }, 0)
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_are_exact() {
        for (text, expected) in [
            ("1", Ok(1000)),
            ("900m", Ok(900)),
            ("0.5", Ok(500)),
            (".5", Ok(500)),
            ("5.", Ok(5000)),
            ("0", Ok(0)),
            ("-0", Ok(0)),
            ("0.000000000000000000000000000000000000000000000000", Ok(0)),
            ("+1", Ok(1000)),
            ("1k", Ok(1_000_000)),
            ("1Ki", Ok(1_024_000)),
            ("1e3", Ok(1_000_000)),
            ("1E3", Ok(1_000_000)),
            ("1E", Err(QuantityError::TooLarge)),
            ("5e-1", Ok(500)),
            ("500000u", Ok(500)),
            ("1000000n", Ok(1)),
            ("1n", Err(QuantityError::TooFine)),
            ("0.0001", Err(QuantityError::TooFine)),
            ("0.1m", Err(QuantityError::TooFine)),
            ("-1", Err(QuantityError::Negative)),
            ("-10m", Err(QuantityError::Negative)),
            ("", Err(QuantityError::Syntax)),
            ("m", Err(QuantityError::Syntax)),
            ("1x", Err(QuantityError::Syntax)),
            ("1 ", Err(QuantityError::Syntax)),
            ("1.2.3", Err(QuantityError::Syntax)),
            ("1e", Err(QuantityError::Syntax)),
            ("1e999999999999999999999", Err(QuantityError::TooLarge)),
            ("1e-999999999999999999999", Err(QuantityError::TooFine)),
            ("99999999999999999999999999999999999999999999999999", Err(QuantityError::TooLarge)),
            ("\u{661}", Err(QuantityError::Syntax)),
        ] {
            assert_eq!(milli(text).map(u128::from), expected, "{text:?}");
        }
    }

    #[test]
    fn json_strings_and_numbers_are_alike() {
        assert_eq!(milli_of_json(&json!("500m")), Ok(500));
        assert_eq!(milli_of_json(&json!(0.5)), Ok(500));
        assert_eq!(milli_of_json(&json!(1)), Ok(1000));
        assert_eq!(milli_of_json(&json!(1e3)), Ok(1_000_000));
        assert_eq!(milli_of_json(&json!(-0.5)), Err(QuantityError::Negative));
        assert_eq!(milli_of_json(&json!(null)), Err(QuantityError::Syntax));
        assert_eq!(milli_of_json(&json!([1])), Err(QuantityError::Syntax));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[-+]?[0-9.]{0,60}[a-zA-Z]{0,2}[-+]?[0-9]{0,30}") {
            let _ = milli(&text);
        }

        #[test]
        fn whole_thousandths_are_read_back(value in 0u64..1 << 50) {
            prop_assert_eq!(milli(&format!("{value}m")), Ok(value));
            prop_assert_eq!(milli(&format!("{}.{:03}", value / 1000, value % 1000)), Ok(value));
        }
    }
}
