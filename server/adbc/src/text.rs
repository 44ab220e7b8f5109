//! The text of a statement, as far as the engine needs to understand it: is it one statement, does it return rows, and
//! does it leave something behind in its connection. Everything else is for the database.
//!
//! Databases have different dialects, so this module reads words and quotes only. If it errs, then towards a connection
//! that is closed although it could be reused.

use thallus_server::engine::EngineError;

/// How a statement is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It returns rows, and is a query that PostgreSQL's `COPY` can wrap.
    Select,
    /// It may return rows: `EXPLAIN`, `PRAGMA`, `CALL`, a word that is unknown here.
    Rows,
    /// It changes rows, and returns some: `RETURNING`.
    Returning,
    /// It changes rows, and the database counts them.
    Change,
    /// It changes tables or other objects. Its count is 0.
    Definition,
}

/// Properties of a statement that follow from its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    pub(crate) kind: Kind,
    /// True if the text has a semicolon within, as bodies of triggers have. Some drivers run all parts but the last
    /// when they prepare such a text.
    pub(crate) has_parts: bool,
    /// True if a connection that has run it is as good as a new one, as far as the text tells.
    pub(crate) leaves_no_state: bool,
}

/// Words of functions and clauses that set or read the state of a connection.
const OF_THE_CONNECTION: [&str; 11] = [
    "CHANGES",
    "CURRVAL",
    "GETVARIABLE",
    "LASTVAL",
    "LAST_INSERT_ROWID",
    "LOAD_EXTENSION",
    "SETSEED",
    "SET_CONFIG",
    "TEMP",
    "TEMPORARY",
    "TOTAL_CHANGES",
];
/// Statements whose effect would end with their connection, before the client's next statement.
const WITHOUT_EFFECT: [&str; 9] =
    ["ABORT", "BEGIN", "COMMIT", "END", "RELEASE", "ROLLBACK", "SAVEPOINT", "START", "USE"];
/// Most words before `TABLE` or `TRIGGER` in a `CREATE`.
const WORDS_OF_CREATE: usize = 6;

impl Statement {
    /// Reads a text.
    ///
    /// # Errors
    /// The text has no statement, or several, or one that has no effect for clients.
    pub(crate) fn of(sql: &str) -> Result<Self, EngineError> {
        let Words { outer, several } = Words::of(sql);
        let Some(first) = outer.first().map(String::as_str) else {
            return Err(EngineError::Syntax { message: "there is no statement in the text".to_owned() });
        };
        let head = &outer[..outer.len().min(WORDS_OF_CREATE)];
        let creates = |what: &[&str]| first == "CREATE" && head.iter().any(|word| what.contains(&word.as_str()));
        // Bodies of triggers and functions contain statements.
        if several && !creates(&["TRIGGER", "FUNCTION", "PROCEDURE"]) {
            return Err(EngineError::Syntax { message: "one statement at a time; this text has several".to_owned() });
        }
        if WITHOUT_EFFECT.contains(&first) {
            let message = format!(
                "{first}: each statement has a transaction of its own, and nothing of a connection is kept for the \
                 next statement; the current catalog and schema travel with each request"
            );
            return Err(EngineError::Unsupported { message });
        }
        let is_temporary = |words: &[String]| {
            matches!(words[0].as_str(), "CREATE" | "REPLACE" | "GLOBAL" | "LOCAL")
                && matches!(words[1].as_str(), "TEMP" | "TEMPORARY")
        };
        if first == "CREATE" && head.windows(2).any(is_temporary) {
            let message = "temporary tables and views: they would end with the statement that creates them".to_owned();
            return Err(EngineError::Unsupported { message });
        }
        let kind = kind(first, &outer);
        let known = kind != Kind::Rows || matches!(first, "EXPLAIN" | "SHOW" | "DESCRIBE" | "SUMMARIZE");
        let leaves_no_state =
            known && first != "COPY" && !several && !words_anywhere(sql).any(|word| of_the_connection(&word));
        Ok(Statement { kind, has_parts: several, leaves_no_state })
    }
}

/// How a statement with these words outside of parentheses is run.
fn kind(first: &str, outer: &[String]) -> Kind {
    let has = |word: &str| outer.iter().any(|other| other == word);
    let verb = match first {
        // The verb follows the names and the parentheses of the common table expressions.
        "WITH" => outer.iter().map(String::as_str).find(|word| {
            matches!(
                *word,
                "SELECT" | "VALUES" | "TABLE" | "FROM" | "INSERT" | "UPDATE" | "DELETE" | "MERGE" | "REPLACE"
            )
        }),
        first => Some(first),
    };
    match verb {
        Some("SELECT") if has("INTO") => Kind::Definition,
        Some("SELECT" | "VALUES" | "TABLE" | "FROM" | "PIVOT" | "UNPIVOT") => Kind::Select,
        Some("INSERT" | "UPDATE" | "DELETE" | "MERGE" | "REPLACE" | "UPSERT") if has("RETURNING") => Kind::Returning,
        Some("INSERT" | "UPDATE" | "DELETE" | "MERGE" | "REPLACE" | "UPSERT" | "COPY") => Kind::Change,
        Some("CREATE" | "DROP" | "ALTER" | "TRUNCATE" | "COMMENT" | "GRANT" | "REVOKE" | "REINDEX") => Kind::Definition,
        _ => Kind::Rows,
    }
}

fn of_the_connection(word: &str) -> bool {
    OF_THE_CONNECTION.contains(&word) || word.starts_with("PG_ADVISORY") || word.starts_with("PRAGMA")
}

fn is_of_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// The words of the text, also those in quotes and comments, in capitals.
fn words_anywhere(sql: &str) -> impl Iterator<Item = String> {
    sql.split(|letter| !is_of_word(letter)).filter(|word| !word.is_empty()).map(str::to_uppercase)
}

/// The words of a text outside of parentheses, quotes and comments, in capitals.
struct Words {
    outer: Vec<String>,
    /// True if something follows a semicolon.
    several: bool,
}

impl Words {
    fn of(sql: &str) -> Self {
        let mut words = Words { outer: Vec::new(), several: false };
        let (mut depth, mut begun, mut ended) = (0_usize, false, false);
        for token in Tokens(sql) {
            if matches!(token, Token::Sign(';')) {
                ended |= begun;
                continue;
            }
            words.several |= ended;
            match token {
                Token::Word(word) if depth == 0 => words.outer.push(word.to_uppercase()),
                Token::Sign('(') => {
                    // `(SELECT 1) UNION (SELECT 2)`
                    if !begun {
                        words.outer.push("SELECT".to_owned());
                    }
                    depth += 1;
                }
                Token::Sign(')') => depth = depth.saturating_sub(1),
                _ => {}
            }
            begun = true;
        }
        words
    }
}

/// The names of the parameters `$name`, in the order in which they first appear. `$1` is not one of them.
pub(crate) fn named_parameters(sql: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut after_sign = false;
    for token in Tokens(sql) {
        if let Token::Word(word) = token {
            let is_name = after_sign && !word.starts_with(|letter: char| letter.is_ascii_digit());
            if is_name && !names.iter().any(|name| name == word) {
                names.push(word.to_owned());
            }
        }
        after_sign = matches!(token, Token::Sign('$'));
    }
    names
}

/// A part of a text, without white space and comments.
#[derive(Clone, Copy, Debug)]
enum Token<'a> {
    Word(&'a str),
    Quoted,
    Sign(char),
}

/// The tokens of the rest of a text.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let rest = self.0.trim_start();
            let is_comment = rest.starts_with("--") || rest.starts_with("/*");
            if let Some(length) = skipped(rest) {
                self.0 = &rest[length..];
                if is_comment {
                    continue;
                }
                return Some(Token::Quoted);
            }
            let sign = rest.chars().next()?;
            let length = rest.find(|letter| !is_of_word(letter)).unwrap_or(rest.len());
            if length > 0 {
                self.0 = &rest[length..];
                return Some(Token::Word(&rest[..length]));
            }
            self.0 = &rest[sign.len_utf8()..];
            return Some(Token::Sign(sign));
        }
    }
}

/// The length of the comment or the quoted text that `rest` begins with. An open one extends to the end.
fn skipped(rest: &str) -> Option<usize> {
    let to = |start: usize, end: &str| rest[start..].find(end).map_or(rest.len(), |at| start + at + end.len());
    if rest.starts_with("--") {
        return Some(to(2, "\n"));
    }
    if rest.starts_with("/*") {
        return Some(to(2, "*/"));
    }
    let first = rest.chars().next()?;
    match first {
        // A doubled quote begins another quoted text, which is as good.
        '\'' | '"' | '`' => Some(to(1, first.encode_utf8(&mut [0; 4]))),
        'e' | 'E' if rest[1..].starts_with('\'') => Some(escaped(rest)),
        '$' => {
            let tag = rest[1..].find(|letter| !is_of_word(letter)).map(|at| &rest[..at + 2])?;
            // `$1` is a parameter, and `$tag$` begins a text.
            (tag.ends_with('$') && !tag[1..].starts_with(|letter: char| letter.is_ascii_digit()))
                .then(|| to(tag.len(), tag))
        }
        _ => None,
    }
}

/// The length of a text such as `E'it\'s'`.
fn escaped(rest: &str) -> usize {
    let mut escape = false;
    for (at, letter) in rest.char_indices().skip(2) {
        match letter {
            '\'' if !escape => return at + 1,
            _ => escape = letter == '\\' && !escape,
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use thallus_server::engine::EngineErrorKind;

    use super::*;

    fn kind_of(sql: &str) -> (Kind, bool) {
        let statement = Statement::of(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        (statement.kind, statement.leaves_no_state)
    }

    #[test]
    fn kinds() {
        for (sql, expected) in [
            ("SELECT 1", (Kind::Select, true)),
            ("  -- a; comment\n/* b; */ select ';' ;; -- end", (Kind::Select, true)),
            ("(SELECT 1) UNION (SELECT 2)", (Kind::Select, true)),
            ("FROM t", (Kind::Select, true)),
            ("WITH a AS (INSERT INTO t VALUES (1)) SELECT replace(x, 'a', 'b') FROM a", (Kind::Select, true)),
            ("WITH RECURSIVE a(x) AS (SELECT 1) INSERT INTO t SELECT x FROM a", (Kind::Change, true)),
            ("WITH a AS (SELECT 1) DELETE FROM t USING a RETURNING 1", (Kind::Returning, true)),
            ("INSERT INTO t VALUES ('RETURNING')", (Kind::Change, true)),
            ("insert into t values (1) returning a", (Kind::Returning, true)),
            ("SELECT * INTO u FROM t", (Kind::Definition, true)),
            ("SELECT (SELECT 1 INTO x)", (Kind::Select, true)),
            ("CREATE TABLE t AS SELECT 1", (Kind::Definition, true)),
            ("CREATE TABLE temp (a INTEGER)", (Kind::Definition, false)),
            ("EXPLAIN SELECT 1", (Kind::Rows, true)),
            ("COPY t FROM 'x.csv'", (Kind::Change, false)),
            ("PRAGMA table_info(t)", (Kind::Rows, false)),
            ("SET x = 1", (Kind::Rows, false)),
            ("ATTACH 'a.db'", (Kind::Rows, false)),
            ("SELECT set_config('search_path', 'x', false)", (Kind::Select, false)),
            ("SELECT \"set_config\"('search_path', 'x', false)", (Kind::Select, false)),
            ("SELECT pg_advisory_lock(1)", (Kind::Select, false)),
            ("SELECT temperature FROM t", (Kind::Select, true)),
            ("SELECT $1, $$;$$, $tag$ ; $tag$, E'\\';'", (Kind::Select, true)),
            ("SELECT 'it''s; fine', \"a;b\", `c;d`", (Kind::Select, true)),
            ("CREATE TRIGGER x AFTER INSERT ON t BEGIN DELETE FROM u; END", (Kind::Definition, false)),
        ] {
            assert_eq!(kind_of(sql), expected, "{sql}");
        }
    }

    #[test]
    fn texts_that_are_refused() {
        use EngineErrorKind::{Syntax, Unsupported};
        for (sql, expected) in [
            ("", Syntax),
            (" -- nothing\n;", Syntax),
            ("SELECT 1; SELECT 2", Syntax),
            ("SELECT 1; 'x'", Syntax),
            ("SET x = 1; SELECT 1", Syntax),
            ("SELECT 'a;'; DROP TABLE t", Syntax),
            ("begin", Unsupported),
            ("ROLLBACK", Unsupported),
            ("USE other", Unsupported),
            ("CREATE OR REPLACE TEMP TABLE t (a INTEGER)", Unsupported),
        ] {
            assert_eq!(Statement::of(sql).unwrap_err().kind(), expected, "{sql}");
        }
    }

    #[test]
    fn names_of_parameters_are_in_the_order_of_the_text() {
        assert_eq!(named_parameters("SELECT $b - $a, ($b), '$c', $1, x::int, $$ $d $$ -- $e"), ["b", "a"]);
        assert!(named_parameters("SELECT ?").is_empty());
    }

    #[test]
    fn open_quotes_and_odd_letters_do_no_harm() {
        for sql in
            ["SELECT 'abc", "SELECT \"é", "SELECT E'\\", "SELECT $", "SELECT $é$ü", "SELECT /* x", "SELECT 日本;"]
        {
            assert_eq!(kind_of(sql).0, Kind::Select, "{sql}");
        }
    }
}
