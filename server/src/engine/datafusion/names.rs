//! Names of tables in queries. A table has the name of its file, with capitals. An identifier in quotes names the table
//! of exactly this name. One without quotes names the only table that it fits, in whatever case. So does one in quotes
//! that has no capitals, since DataFusion does not tell the two apart.
//!
//! DataFusion puts identifiers without quotes in lower case before it looks for a table, and does not tell whether
//! there were quotes. So names that could mean several tables are found in the statement.

use std::borrow::Cow;
use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Ident, ObjectName, ObjectNamePart, Query, Statement as SqlStatement, Visit, Visitor,
};

use crate::engine::EngineError;

/// The catalog of all tables.
pub(super) const CATALOG: &str = "thallus";
/// The schema of the operator's tables, and of tables that are created without another.
pub(super) const SCHEMA: &str = "public";
/// The schema about the server, see `about`.
pub(super) const SERVER_SCHEMA: &str = "server";

/// Returns whether a name may come from an identifier without quotes.
pub(super) fn may_be_unquoted(name: &str) -> bool {
    !name.chars().any(|c| c.is_ascii_uppercase())
}

/// Refuses a statement with an identifier without quotes that fits several tables.
pub(super) fn check(statement: &Statement, tables: &[String]) -> Result<(), EngineError> {
    let mut unquoted = Unquoted::default();
    visit(statement, &mut unquoted);
    for name in &unquoted.names {
        let is_of_query = unquoted.in_with.iter().any(|known| known.eq_ignore_ascii_case(name));
        let fitting: Vec<String> = tables
            .iter()
            .filter(|table| table.eq_ignore_ascii_case(name))
            .map(|table| format!("\"{table}\""))
            .collect();
        if fitting.len() > 1 && !is_of_query {
            let fitting = fitting.join(" and ");
            let message = format!("the table name {name} is ambiguous: {fitting}; write one of them, with its quotes");
            return Err(EngineError::Plan { message });
        }
    }
    Ok(())
}

/// The name of the table that an identifier without quotes means, if it is spelled otherwise.
pub(super) fn spelling(tables: &[String], identifier: &str) -> Option<String> {
    let mut fitting = tables.iter().filter(|table| table.eq_ignore_ascii_case(identifier));
    let (only, None) = (fitting.next()?, fitting.next()) else { return None };
    (*only != identifier.to_ascii_lowercase()).then(|| only.clone())
}

/// The part of a statement that reads tables: the query of one that creates a table or a view, else all of it.
pub(super) fn reading(statement: &Statement) -> Option<Cow<'_, Statement>> {
    let Statement::Statement(sql) = statement else { return Some(Cow::Borrowed(statement)) };
    match &**sql {
        SqlStatement::CreateTable(create) => create.query.as_deref().map(|query| Cow::Owned(statement_of(query))),
        SqlStatement::CreateView(create) => Some(Cow::Owned(statement_of(&create.query))),
        _ => Some(Cow::Borrowed(statement)),
    }
}

/// A query as a statement.
pub(super) fn statement_of(query: &Query) -> Statement {
    Statement::Statement(Box::new(SqlStatement::Query(Box::new(query.clone()))))
}

/// The statement with the table of `SHOW COLUMNS` in quotes, as `spelling` has it: DataFusion rewrites this statement
/// to a query that compares names.
pub(super) fn spelled(mut statement: Statement, spelling: impl Fn(&str) -> Option<String>) -> Statement {
    if let Statement::Statement(sql) = &mut statement
        && let SqlStatement::ShowColumns { show_options, .. } = &mut **sql
        && let Some(show_in) = &mut show_options.show_in
        && let Some(name) = &mut show_in.parent_name
        && let Some(ObjectNamePart::Identifier(ident)) = name.0.last_mut()
        && ident.quote_style.is_none()
        && let Some(exact) = spelling(&ident.value)
    {
        *ident = Ident::with_quote('"', exact);
    }
    statement
}

fn visit(statement: &Statement, unquoted: &mut Unquoted) {
    let flow = match statement {
        Statement::Statement(statement) => statement.visit(unquoted),
        Statement::Explain(explain) => return visit(&explain.statement, unquoted),
        // Refused before.
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => ControlFlow::Continue(()),
    };
    debug_assert!(flow.is_continue(), "the visitor does not break");
}

/// The tables of a statement that have no quotes.
#[derive(Default)]
struct Unquoted {
    names: Vec<String>,
    /// Names that the statement itself defines.
    in_with: Vec<String>,
}

impl Visitor for Unquoted {
    type Break = ();

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        let mut parts = relation.0.iter().rev().map(ObjectNamePart::as_ident);
        let table = parts.next().flatten();
        // Other schemas have no tables of files.
        let is_of_files = parts.next().flatten().is_none_or(|schema| schema.value.eq_ignore_ascii_case(SCHEMA));
        if let Some(ident) = table.filter(|ident| is_of_files && ident.quote_style.is_none()) {
            self.names.push(ident.value.clone());
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let defined = query.with.iter().flat_map(|with| &with.cte_tables);
        self.in_with.extend(defined.map(|defined| defined.alias.name.value.clone()));
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::guard;
    use super::*;

    fn parsed(sql: &str) -> Statement {
        guard::parse(sql, 1000, guard::Allowed::Queries).unwrap()
    }

    #[test]
    fn names_without_quotes_that_fit_several_tables_are_refused() {
        let tables = ["Orders", "items", "orders"].map(str::to_owned);
        for sql in [
            "SELECT * FROM Orders",
            "SELECT * FROM orders",
            "SELECT * FROM public.ORDERS",
            "SELECT * FROM thallus.public.orders",
            "EXPLAIN SELECT 1 FROM items WHERE id IN (SELECT id FROM oRders)",
            "DESCRIBE orders",
            "SHOW COLUMNS FROM orders",
        ] {
            let error = check(&parsed(sql), &tables).unwrap_err().to_string();
            assert!(error.contains("\"Orders\" and \"orders\""), "{sql}: {error}");
        }
        for sql in [
            "SELECT * FROM \"Orders\", \"orders\", Items",
            "SELECT * FROM information_schema.orders",
            "WITH orders AS (SELECT 1) SELECT * FROM orders",
            "SELECT orders FROM items",
            "SHOW TABLES",
        ] {
            assert_eq!(check(&parsed(sql), &tables), Ok(()), "{sql}");
        }
        assert_eq!(check(&parsed("SELECT * FROM ORDERS"), &tables[..2]), Ok(()));
    }

    #[test]
    fn show_columns_gets_the_spelling_of_the_table() {
        let spelling = |name: &str| (name == "orders").then(|| "Orders".to_owned());
        for (sql, expected) in [
            ("SHOW COLUMNS FROM orders", "SHOW COLUMNS FROM \"Orders\""),
            ("SHOW COLUMNS FROM public.orders", "SHOW COLUMNS FROM public.\"Orders\""),
            ("SHOW COLUMNS FROM \"orders\"", "SHOW COLUMNS FROM \"orders\""),
            ("SHOW COLUMNS FROM items", "SHOW COLUMNS FROM items"),
        ] {
            assert_eq!(spelled(parsed(sql), spelling).to_string(), expected);
        }
    }
}
