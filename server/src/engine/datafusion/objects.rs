//! Lists of catalogs, schemas, tables and columns.

use std::sync::Arc;

use arrow_array::{Scalar, StringArray};
use datafusion::arrow::compute::kernels::comparison::like;
use datafusion::catalog::{CatalogProviderList, SchemaProvider};
use datafusion::logical_expr::TableType;

use super::{Shared, error};
use crate::engine::{CatalogObject, Depth, EngineError, ObjectsRequest, TableObject};

/// The objects that a request asks for, in the order of their names.
pub(super) async fn list(shared: &Shared, request: &ObjectsRequest) -> Result<Vec<CatalogObject>, EngineError> {
    let mut objects = Vec::new();
    let catalogs = match shared.catalogs() {
        Some(catalogs) => Arc::new(catalogs) as Arc<dyn CatalogProviderList>,
        None => Arc::clone(shared.context.state_ref().read().catalog_list()),
    };
    for catalog in matching(catalogs.catalog_names(), request.catalog.as_deref())? {
        let object = |schema: Option<&str>, table| CatalogObject {
            catalog: catalog.clone(),
            schema: schema.map(str::to_owned),
            table,
        };
        let provider = catalogs.catalog(&catalog);
        let schemas = match (&provider, request.depth) {
            (None, _) | (_, Depth::Catalogs) => Vec::new(),
            (Some(provider), _) => matching(provider.schema_names(), request.schema.as_deref())?,
        };
        if schemas.is_empty() {
            objects.push(object(None, None));
        }
        for schema in schemas {
            let tables = match provider.as_ref().and_then(|provider| provider.schema(&schema)) {
                Some(provider) if request.depth >= Depth::Tables => tables(&*provider, request).await?,
                _ => Vec::new(),
            };
            if tables.is_empty() {
                objects.push(object(Some(&schema), None));
            }
            objects.extend(tables.into_iter().map(|table| object(Some(&schema), Some(table))));
        }
    }
    Ok(objects)
}

async fn tables(schema: &dyn SchemaProvider, request: &ObjectsRequest) -> Result<Vec<TableObject>, EngineError> {
    let mut tables = Vec::new();
    for name in matching(schema.table_names(), request.table.as_deref())? {
        let kind = schema.table_type(&name).await.map_err(|e| error::of_datafusion(e, &[]));
        let kind = match kind {
            Ok(Some(TableType::View)) => "view",
            // A table whose files cannot be read now is listed all the same.
            Ok(Some(TableType::Base)) | Err(_) => "table",
            Ok(Some(TableType::Temporary)) => "temporary",
            // It was dropped in the meantime.
            Ok(None) => continue,
        };
        if request.kinds.as_ref().is_some_and(|kinds| !kinds.iter().any(|wanted| wanted == kind)) {
            continue;
        }
        let columns = match request.depth {
            Depth::Columns => schema.table(&name).await.ok().flatten().map(|table| table.schema()),
            _ => None,
        };
        tables.push(TableObject { name, kind: kind.to_owned(), columns });
    }
    Ok(tables)
}

/// The names that match a pattern of LIKE, sorted.
fn matching(mut names: Vec<String>, pattern: Option<&str>) -> Result<Vec<String>, EngineError> {
    names.sort_unstable();
    let Some(pattern) = pattern else { return Ok(names) };
    let matches = like(&StringArray::from(names.clone()), &Scalar::new(StringArray::from(vec![pattern])));
    let matches = matches.map_err(|e| EngineError::Plan { message: format!("the pattern {pattern:?}: {e}") })?;
    Ok(names.into_iter().zip(matches.values()).filter(|(_, matches)| *matches).map(|(name, _)| name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_like() {
        let names = || ["orders", "Orders", "order_line", "orderxline", "100%"].map(str::to_owned).to_vec();
        let matching = |pattern: Option<&str>| matching(names(), pattern).unwrap().join(" ");
        assert_eq!(matching(None), "100% Orders order_line orders orderxline");
        assert_eq!(matching(Some("orders")), "orders");
        assert_eq!(matching(Some("order%")), "order_line orders orderxline");
        assert_eq!(matching(Some("order_line")), "order_line orderxline");
        assert_eq!(matching(Some("order\\_line")), "order_line");
        assert_eq!(matching(Some("%\\%")), "100%");
        assert_eq!(matching(Some("")), "");
    }
}
