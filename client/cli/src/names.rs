//! Names of tables and columns in SQL.

/// The pattern of SQL's LIKE that matches a name only.
pub(crate) fn pattern(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len());
    for c in name.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// The parts of a name as written in SQL: `a."B.c"` has `a` and `B.c`.
pub(crate) fn parts(written: &str) -> Vec<String> {
    let (mut parts, mut part, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = written.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                part.push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(std::mem::take(&mut part)),
            c if quoted => part.push(c),
            c => part.extend(c.to_lowercase()),
        }
    }
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_patterns_of_themselves() {
        assert_eq!(pattern("a_b%c\\d"), "a\\_b\\%c\\\\d");
    }

    #[test]
    fn names_have_parts_and_quotes() {
        assert_eq!(parts("Server.\"Tab.les\""), ["server", "Tab.les"]);
        assert_eq!(parts("\"a\"\"b.c\""), ["a\"b.c"]);
    }
}
