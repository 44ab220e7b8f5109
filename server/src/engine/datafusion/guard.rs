//! Statements accepted for planning: one at a time, read-only, and not nested so deeply that the stack would overflow.
//!
//! The parser limits its own recursion, but it parses chains such as `a + a + ...` in a loop, to a tree as deep as the
//! chain is long. Most later operations on trees (to copy, compare, hash, print, evaluate and drop them) recurse
//! without a limit. So this module bounds the depth from the tokens, before there is a tree.

use datafusion::error::DataFusionError;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{ObjectType, Statement as SqlStatement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use super::{error, parameters};
use crate::engine::EngineError;

/// Deepest nesting of parentheses, sub-queries and the like that the parser accepts.
const PARSER_RECURSION: usize = 128;

/// Highest accepted [`nesting`]. Not only the stack limits it: DataFusion's time for planning a chain grows faster than
/// the square of its length.
pub(super) const MAX_NESTING: usize = 1024;

/// The statements that are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Those that only read.
    Queries,
    /// Those that change the database, too.
    Changes,
}

/// Parses `sql`, which must be exactly one statement of those that are allowed.
pub(super) fn parse(sql: &str, max_sql_bytes: usize, allowed: Allowed) -> Result<Statement, EngineError> {
    if sql.len() > max_sql_bytes {
        return Err(EngineError::TooLarge { what: "length in bytes", actual: sql.len(), limit: max_sql_bytes });
    }
    let dialect = GenericDialect {};
    let mut tokens = Tokenizer::new(&dialect, sql)
        .tokenize_with_location()
        .map_err(|e| EngineError::Syntax { message: e.to_string() })?;
    let depth = nesting(&tokens);
    if depth > MAX_NESTING {
        return Err(EngineError::TooLarge { what: "nesting of expressions", actual: depth, limit: MAX_NESTING });
    }
    parameters::number(&mut tokens)?;
    let words = first_words(&tokens);
    let mut statements = DFParserBuilder::new(tokens)
        .with_dialect(&dialect)
        .with_recursion_limit(PARSER_RECURSION)
        .build()
        .and_then(|mut parser| parser.parse_statements())
        .map_err(of_parser)?;
    match (statements.pop_front(), statements.len()) {
        (Some(statement), 0) if only_reads(&statement) => Ok(statement),
        (Some(statement), 0) if allowed == Allowed::Changes => match changes_tables(&statement) {
            true => Ok(statement),
            false => Err(EngineError::Unsupported {
                message: format!(
                    "{words}; this server answers queries, and changes tables by CREATE, INSERT, UPDATE, DELETE, \
                     TRUNCATE and DROP"
                ),
            }),
        },
        (Some(_), 0) => Err(EngineError::ReadOnly { statement: words }),
        (Some(_), more) => {
            Err(EngineError::Syntax { message: format!("one statement at a time; this text has {}", more + 1) })
        }
        (None, _) => Err(EngineError::Syntax { message: "there is no statement in the text".to_owned() }),
    }
}

/// An error of the parser. Only this module knows the limit of its recursion.
fn of_parser(error: DataFusionError) -> EngineError {
    match &error {
        DataFusionError::SQL(parser, _) if matches!(**parser, ParserError::RecursionLimitExceeded) => {
            EngineError::Syntax { message: format!("nested more than {PARSER_RECURSION} deep") }
        }
        _ => error::of_datafusion(error, &[]),
    }
}

/// Whether a statement, by its kind, only reads. A list of allowed kinds, so that kinds of later versions are refused.
fn only_reads(statement: &Statement) -> bool {
    match statement {
        Statement::Explain(explain) => only_reads(&explain.statement),
        Statement::Statement(statement) => sql_only_reads(statement),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => false,
    }
}

fn sql_only_reads(statement: &SqlStatement) -> bool {
    match statement {
        SqlStatement::Query(_)
        | SqlStatement::ShowTables { .. }
        | SqlStatement::ShowColumns { .. }
        | SqlStatement::ShowFunctions { .. }
        | SqlStatement::ShowVariable { .. }
        | SqlStatement::ShowVariables { .. }
        | SqlStatement::ExplainTable { .. } => true,
        SqlStatement::Explain { statement, .. } => sql_only_reads(statement),
        _ => false,
    }
}

/// Whether a statement, by its kind, changes tables, views or schemas of the database.
fn changes_tables(statement: &Statement) -> bool {
    let Statement::Statement(statement) = statement else { return false };
    match &**statement {
        SqlStatement::CreateTable(_)
        | SqlStatement::CreateView(_)
        | SqlStatement::CreateSchema { .. }
        | SqlStatement::Insert(_)
        | SqlStatement::Update(_)
        | SqlStatement::Delete(_)
        | SqlStatement::Truncate(_) => true,
        SqlStatement::Drop { object_type, .. } => {
            matches!(object_type, ObjectType::Table | ObjectType::View | ObjectType::Schema)
        }
        _ => false,
    }
}

/// At least half the depth of any tree that a statement can form; see [`MAX_NESTING`].
pub(super) fn nesting_of(sql: &str) -> usize {
    // The text was parsed before.
    Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().map_or(MAX_NESTING, |tokens| nesting(&tokens))
}

/// The statement's first words, for a message: `CREATE EXTERNAL TABLE`, `SET`.
fn first_words(tokens: &[TokenWithSpan]) -> String {
    const MOST: usize = 3;
    let words: Vec<String> = tokens
        .iter()
        .map(|token| &token.token)
        .filter(|token| !matches!(token, Token::Whitespace(_)))
        .map_while(|token| match token {
            Token::Word(word) if word.keyword != Keyword::NoKeyword && word.quote_style.is_none() => {
                Some(word.value.to_uppercase())
            }
            _ => None,
        })
        .take(MOST)
        .collect();
    if words.is_empty() { "this statement".to_owned() } else { words.join(" ") }
}

/// One pair of parentheses, or the whole text.
#[derive(Default)]
struct Level {
    /// Joins, set operations and other steps of a query at this level: each may be one level of the plan's tree.
    steps: usize,
    /// Operators and keywords of the current expression: each may be one level of its tree.
    operators: usize,
    /// Depth of the deepest parentheses in the current expression.
    inner: usize,
    /// Depth of the deepest earlier expression.
    deepest: usize,
    /// Whether this is a list of tables, in `FROM a, b` (which are joins) or `WITH a AS (), b AS ()`. There, commas
    /// nest, and in lists of expressions they do not.
    lists_tables: bool,
    /// Whether the last operator or keyword begins a term. One comparison after it does not count: the depth of a chain
    /// `a = 1 OR a = 2 OR ...` is its number of ORs plus one.
    begins_term: bool,
}

impl Level {
    fn depth(&self) -> usize {
        self.steps + self.deepest.max(self.operators + self.inner)
    }

    fn operator(&mut self) {
        match self.lists_tables {
            true => self.steps += 1,
            false => self.operators += 1,
        }
        self.begins_term = false;
    }

    fn comma(&mut self) {
        match self.lists_tables {
            true => self.steps += 1,
            false => self.end_expression(),
        }
    }

    fn end_expression(&mut self) {
        self.deepest = self.deepest.max(self.operators + self.inner);
        (self.operators, self.inner, self.begins_term) = (0, 0, false);
    }

    /// A keyword that begins a part of a query.
    fn clause(&mut self, lists_tables: bool) {
        self.end_expression();
        self.steps += 1;
        self.lists_tables = lists_tables;
    }
}

/// Keywords that are as often names of columns, or types or constants, and never a level of a tree by themselves.
/// Without this list the depth of `id = 1 OR id = 2` would be overestimated.
fn is_a_name(keyword: Keyword) -> bool {
    matches!(
        keyword,
        Keyword::ID
            | Keyword::NAME
            | Keyword::NAMES
            | Keyword::VALUE
            | Keyword::KEY
            | Keyword::KEYS
            | Keyword::DATE
            | Keyword::TIME
            | Keyword::TIMESTAMP
            | Keyword::YEAR
            | Keyword::MONTH
            | Keyword::DAY
            | Keyword::HOUR
            | Keyword::MINUTE
            | Keyword::SECOND
            | Keyword::TYPE
            | Keyword::STATUS
            | Keyword::COMMENT
            | Keyword::VERSION
            | Keyword::LOCATION
            | Keyword::OWNER
            | Keyword::USER
            | Keyword::COST
            | Keyword::COUNT
            | Keyword::LEVEL
            | Keyword::REGION
            | Keyword::TEXT
            | Keyword::STRING
            | Keyword::INT
            | Keyword::INTEGER
            | Keyword::BIGINT
            | Keyword::SMALLINT
            | Keyword::TINYINT
            | Keyword::DOUBLE
            | Keyword::FLOAT
            | Keyword::REAL
            | Keyword::DECIMAL
            | Keyword::NUMERIC
            | Keyword::CHAR
            | Keyword::VARCHAR
            | Keyword::BOOLEAN
            | Keyword::TRUE
            | Keyword::FALSE
            | Keyword::NULL
            | Keyword::DATA
            | Keyword::TAG
            | Keyword::URL
            | Keyword::SOURCE
            | Keyword::TARGET
    )
}

/// At least half the depth of any tree, of expressions or of plans, that these tokens can form. It does not grow with
/// the number of literals in a list.
fn nesting(tokens: &[TokenWithSpan]) -> usize {
    let mut outer: Vec<Level> = Vec::new();
    let mut level = Level::default();
    let mut last_keyword = Keyword::NoKeyword;
    for token in tokens {
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => outer.push(std::mem::take(&mut level)),
            Token::RParen | Token::RBracket | Token::RBrace => {
                let depth = level.depth() + 1;
                // One too many is a syntax error, which the parser reports with a better message.
                level = outer.pop().unwrap_or_default();
                level.inner = level.inner.max(depth);
                // `a[1][1]`, `f(x)(y)`: one within the other, without an operator between them.
                level.operator();
            }
            Token::Comma => level.comma(),
            Token::Eq | Token::Neq | Token::Lt | Token::LtEq | Token::Gt | Token::GtEq if level.begins_term => {
                level.begins_term = false;
            }
            Token::Word(word) if word.keyword == Keyword::NoKeyword || is_a_name(word.keyword) => {}
            Token::Word(word) => {
                let last = std::mem::replace(&mut last_keyword, word.keyword);
                match word.keyword {
                    Keyword::FROM if last != Keyword::DISTINCT => level.clause(true),
                    Keyword::WITH => level.clause(true),
                    Keyword::SELECT | Keyword::WHERE | Keyword::GROUP | Keyword::HAVING | Keyword::ORDER => {
                        level.clause(false);
                    }
                    Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT => level.clause(false),
                    _ => level.operator(),
                }
                level.begins_term =
                    matches!(word.keyword, Keyword::AND | Keyword::OR | Keyword::WHERE | Keyword::ON | Keyword::HAVING);
            }
            Token::Whitespace(_) | Token::Number(..) | Token::SingleQuotedString(_) | Token::Period | Token::EOF => {}
            _ => level.operator(),
        }
    }
    while let Some(parent) = outer.pop() {
        let depth = level.depth() + 1;
        level = parent;
        level.inner = level.inner.max(depth);
    }
    level.depth()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineErrorKind;

    #[test]
    fn chains_count_by_their_length() {
        let n = 1000;
        for chain in [
            format!("1{}", "+1".repeat(n)),
            format!("a{}", " OR a".repeat(n)),
            format!("{}a", "NOT ".repeat(n)),
            format!("a{}", "[1]".repeat(n)),
            format!("a{}", "::int".repeat(n)),
            format!("{}1{}", "(".repeat(n), ")".repeat(n)),
            format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(n)),
            format!("SELECT 1, 2{}", " UNION ALL SELECT 1, 2".repeat(n)),
            format!("SELECT 1, 2 FROM t{} ORDER BY a, b", " JOIN t ON a = b".repeat(n)),
            format!("SELECT * FROM t{}", ", t".repeat(n)),
            format!("SELECT * FROM t{}", " CROSS JOIN t".repeat(n)),
            format!("WITH a AS (SELECT 1){} SELECT 1", ", a AS (SELECT * FROM a)".repeat(n)),
            format!("(1{})+(2)+(3)", "+1".repeat(n)),
        ] {
            assert!(nesting_of(&chain) >= n, "{}: {}", &chain[..40], nesting_of(&chain));
        }
    }

    #[test]
    fn lists_do_not_count_by_their_length() {
        let numbers = vec!["-1"; 100_000].join(", ");
        assert!(nesting_of(&format!("SELECT a FROM t WHERE a IN ({numbers})")) < 20);
        assert!(nesting_of(&format!("VALUES {}", vec!["(1, 2)"; 100_000].join(", "))) < 20);
        assert!(nesting_of(&format!("SELECT f({numbers})")) < 20);
        let columns = |column: &str| format!("SELECT {} FROM t", vec![column; 2000].join(", "));
        for column in ["n + 0 AS c", "n AS c", "CASE WHEN n > 1 THEN 1 ELSE 0 END", "a IS DISTINCT FROM b", "f(n)"] {
            assert!(nesting_of(&columns(column)) < 20, "{column}: {}", nesting_of(&columns(column)));
        }
        assert!(nesting_of(&format!("SELECT 1 FROM t GROUP BY {}", vec!["n + 1"; 2000].join(", "))) < 20);
        assert!(nesting_of(&format!("SELECT 1 FROM t ORDER BY {}", vec!["n DESC"; 2000].join(", "))) < 20);
    }

    #[test]
    fn a_chain_of_comparisons_counts_by_its_connectives() {
        let terms = |n: usize| (0..n).map(|i| format!("id = {i}")).collect::<Vec<_>>().join(" OR ");
        let depth = nesting_of(&format!("SELECT id FROM t WHERE {}", terms(1000)));
        assert!((1000..1010).contains(&depth), "{depth}");
        // Nested comparisons do count.
        assert!(nesting_of(&format!("a{}", " = a".repeat(1000))) >= 999);
    }

    #[test]
    fn one_statement_that_reads() {
        let kind = |sql: &str| parse(sql, 1 << 20, Allowed::Queries).map(|_| ()).map_err(|e| e.kind());
        for sql in ["SELECT 1", "select 1;", " VALUES (1) ", "EXPLAIN ANALYZE SELECT 1", "SHOW TABLES", "DESCRIBE t"] {
            assert_eq!(kind(sql), Ok(()), "{sql}");
        }
        let deep = format!("SELECT {}1{}", "(".repeat(200), ")".repeat(200));
        assert!(parse(&deep, 1 << 20, Allowed::Queries).unwrap_err().message().contains("nested more than 128 deep"));
        for sql in ["", ";", "-- nothing", "SELECT 1; SELECT 2", "SELEC 1", "SELECT 'open", "SELECT (1", "SELECT 1)"] {
            assert_eq!(kind(sql), Err(EngineErrorKind::Syntax), "{sql}");
        }
        for sql in [
            "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
            "COPY t TO '/tmp/x.csv'",
            "EXPLAIN COPY t TO '/tmp/x.csv'",
            "INSERT INTO t VALUES (1)",
            "DROP TABLE t",
            "SET datafusion.execution.batch_size = 1",
            "RESET datafusion.execution.batch_size",
            "PREPARE p AS SELECT 1",
            "BEGIN",
            "CREATE FUNCTION f() RETURNS INT RETURN 1",
        ] {
            assert_eq!(kind(sql), Err(EngineErrorKind::ReadOnly), "{sql}");
        }
        assert_eq!(kind(&" ".repeat((1 << 20) + 1)), Err(EngineErrorKind::TooLarge));
        assert_eq!(kind(&format!("SELECT 1{}", "+1".repeat(MAX_NESTING))), Err(EngineErrorKind::TooLarge));
    }

    #[test]
    fn changes_of_tables_are_accepted_with_a_database() {
        let kind = |sql: &str| parse(sql, 1000, Allowed::Changes).map(|_| ()).map_err(|e| e.kind());
        for sql in [
            "SELECT 1",
            "CREATE TABLE t AS SELECT 1",
            "CREATE OR REPLACE TABLE t (a INT NOT NULL)",
            "CREATE VIEW v AS SELECT 1",
            "CREATE SCHEMA IF NOT EXISTS s",
            "INSERT INTO t VALUES (1)",
            "UPDATE t SET a = 1",
            "DELETE FROM t WHERE a = 1",
            "TRUNCATE TABLE t",
            "DROP TABLE IF EXISTS t",
            "DROP VIEW v",
            "DROP SCHEMA s CASCADE",
        ] {
            assert_eq!(kind(sql), Ok(()), "{sql}");
        }
        for sql in [
            "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
            "COPY t TO '/tmp/x.csv'",
            "EXPLAIN INSERT INTO t VALUES (1)",
            "EXPLAIN ANALYZE DELETE FROM t",
            "DROP INDEX i",
            "CREATE DATABASE d",
            "SET datafusion.execution.batch_size = 1",
            "BEGIN",
        ] {
            assert_eq!(kind(sql), Err(EngineErrorKind::Unsupported), "{sql}");
        }
    }

    #[test]
    fn a_refusal_names_the_statement() {
        let refused = |sql| parse(sql, 1000, Allowed::Queries).unwrap_err().message();
        assert!(refused("create external table x stored as csv location 'y'").starts_with("CREATE EXTERNAL TABLE is"));
        assert!(refused("set x = 1").starts_with("SET is"));
    }
}
