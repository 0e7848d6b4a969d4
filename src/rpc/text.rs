//! Bounded text: what goes into a status travels in HTTP/2 trailers, and nothing of it may be endless or a control
//! character.

/// At most `bytes` of `text`, cut at a character, with "…" where something is missing; control characters are shown
/// as U+FFFD.
#[must_use]
pub fn bounded(text: &str, bytes: usize) -> String {
    let mut out = String::with_capacity(text.len().min(bytes));
    for c in text.chars() {
        let c = if c.is_control() { '\u{fffd}' } else { c };
        if out.len() + c.len_utf8() > bytes {
            while out.len() + '…'.len_utf8() > bytes && out.pop().is_some() {}
            if out.len() + '…'.len_utf8() <= bytes {
                out.push('…');
            }
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::bounded;

    #[test]
    fn short_text_stays() {
        assert_eq!(bounded("", 5), "");
        assert_eq!(bounded("abcde", 5), "abcde");
        assert_eq!(bounded("äö", 4), "äö");
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(bounded("abcdefgh", 6), "abc…");
        assert_eq!(bounded("äöüäöü", 6), "ä…");
        assert_eq!(bounded("abc", 2), "");
        for bytes in 0..20 {
            assert!(bounded("aäöüß€😀😀😀", bytes).len() <= bytes);
        }
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(bounded("a\n\x1b[31mb", 50), "a\u{fffd}\u{fffd}[31mb");
    }
}
