//! Text of a guest, made safe to log and to pass on.

/// `bytes` as text of at most `bound` bytes: control characters, line separators, direction marks and bytes that are
/// not UTF-8 are escaped, so that it can neither forge a line nor move a cursor.
pub(super) fn escaped(bytes: &[u8], bound: usize) -> String {
    let mut out = String::with_capacity(bytes.len().min(bound));
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let fits = if is_unsafe(c) {
                push(&mut out, c.escape_default(), bound)
            } else {
                push(&mut out, std::iter::once(c), bound)
            };
            if !fits {
                return out;
            }
        }
        for byte in chunk.invalid() {
            if !push(&mut out, format!("\\x{byte:02x}").chars(), bound) {
                return out;
            }
        }
    }
    out
}

/// Appends all of `piece` or nothing.
fn push(out: &mut String, piece: impl Iterator<Item = char> + Clone, bound: usize) -> bool {
    let length: usize = piece.clone().map(char::len_utf8).sum();
    let fits = out.len() + length <= bound;
    if fits {
        out.extend(piece);
    }
    fits
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}
