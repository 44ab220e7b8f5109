use std::io::Cursor;

use super::*;

fn lexer(text: &'static [u8]) -> Lexer {
    Lexer::new(Box::new(Cursor::new(text)))
}

#[test]
fn numbers() {
    for text in ["0", "-0", "10", "1.5", "-0.25e-10", "1E+5"] {
        assert!(is_number(text), "{text}");
    }
    for text in ["", "-", "01", "1.", ".5", "+1", "1e", "1e+", "--1", "1.2.3", "0x1", "1e5e5"] {
        assert!(!is_number(text), "{text}");
    }
}

#[test]
fn strings() {
    let mut lexer = lexer(br#" "a\"\\\/\b\n\u00e9\ud83d\ude00" "#);
    lexer.string().unwrap();
    assert_eq!(lexer.text(), "a\"\\/\u{8}\né😀");
    for flaw in [b"\"a".as_slice(), b"\"a\nb\"", b"\"\\x\"", b"\"\\ud83d\"", b"\"\\u12\"", b"\"\xe9\"", b"a"] {
        assert!(Lexer::new(Box::new(Cursor::new(flaw))).string().is_err(), "{flaw:?}");
    }
}

#[test]
fn lines_and_depth() {
    let mut lexer = lexer(b"\r\n\r\r\n\n  x");
    assert_eq!(lexer.peek().unwrap(), Some(b'x'));
    assert_eq!(lexer.line(), 5);
    let deep = |levels: usize| {
        let text = "[".repeat(levels) + &"]".repeat(levels);
        Lexer::new(Box::new(Cursor::new(text.into_bytes()))).skip(1)
    };
    assert!(deep(MAX_DEPTH).is_ok());
    assert!(deep(MAX_DEPTH + 1).is_err());
    assert!(deep(1_000_000).is_err());
}
