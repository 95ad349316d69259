//! Parameters of a query (`a=1&b=2`), read without allocating.

/// Bytes of a value that a pattern is searched in once it is decoded; a longer one is decoded in memory of its own.
const VALUE_BYTES_MAX: usize = 1024;

/// The value of the first parameter of a name (Gateway API: "only the first value of the param in the request"), still encoded; empty
/// where the name stands alone.
pub(crate) fn first<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        decoded(key).eq(name.bytes()).then_some(value)
    })
}

/// The bytes that an encoded text stands for (WHATWG URL, application/x-www-form-urlencoded parsing): what is no `%XX` stands for itself.
pub(crate) fn decoded(text: &str) -> impl Iterator<Item = u8> + '_ {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let byte = *bytes.get(at)?;
        let digit = |index: usize| bytes.get(index).and_then(|digit| char::from(*digit).to_digit(16));
        if let (b'%', Some(high), Some(low)) = (byte, digit(at + 1), digit(at + 2)) {
            at += 3;
            return u8::try_from(high * 16 + low).ok();
        }
        at += 1;
        Some(if byte == b'+' { b' ' } else { byte })
    })
}

/// Shows the decoded form of a text to somebody.
pub(crate) fn with_decoded<T>(text: &str, look: impl FnOnce(&[u8]) -> T) -> T {
    if !text.bytes().any(|byte| byte == b'%' || byte == b'+') {
        return look(text.as_bytes());
    }
    let mut room = [0; VALUE_BYTES_MAX];
    if text.len() > room.len() {
        return look(&decoded(text).collect::<Vec<u8>>());
    }
    let mut length = 0;
    for (to, byte) in room.iter_mut().zip(decoded(text)) {
        *to = byte;
        length += 1;
    }
    look(&room[..length])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_of_a_parameter_counts() {
        for (query, name, expected) in [
            ("animal=whale&animal=dolphin", "animal", Some("whale")),
            ("a=1&b=2", "b", Some("2")),
            ("a&b=2", "a", Some("")),
            ("%61=x", "a", Some("x")),
            ("a=b=c", "a", Some("b=c")),
            ("", "a", None),
            ("Animal=whale", "animal", None),
        ] {
            assert_eq!(first(query, name), expected, "{query}");
        }
    }

    #[test]
    fn values_are_decoded_and_what_is_broken_stands_for_itself() {
        for (text, expected) in [
            ("a%20b", "a b"),
            ("a+b", "a b"),
            ("%2B", "+"),
            ("100%", "100%"),
            ("%4", "%4"),
            ("%zz", "%zz"),
            ("%2525", "%25"),
            ("%c3%a9", "\u{e9}"),
        ] {
            assert_eq!(decoded(text).collect::<Vec<_>>(), expected.as_bytes(), "{text}");
            assert!(with_decoded(text, |value| value == expected.as_bytes()), "{text}");
        }
        let long = "%41".repeat(VALUE_BYTES_MAX);
        assert_eq!(with_decoded(&long, <[u8]>::len), VALUE_BYTES_MAX);
    }
}
