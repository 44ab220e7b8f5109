//! The columns of a Parquet file as columns of its table, where a cast of DataFusion would change a value or fail: it
//! rounds integers of 64 bits to floats, and has no cast between structs within maps or between layouts of lists.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr_adapter::{
    DefaultPhysicalExprAdapterFactory, PhysicalExprAdapter, PhysicalExprAdapterFactory,
};

use super::files::{self, ColumnAdapter};
use super::opened::Opened;
use crate::catalog::CatalogError;

/// Adapts the expressions of a scan to each file of a table.
#[derive(Debug)]
pub(super) struct ExactColumns {
    table: Arc<Opened>,
}

impl ExactColumns {
    pub(super) fn new(table: Arc<Opened>) -> Self {
        ExactColumns { table }
    }
}

impl PhysicalExprAdapterFactory for ExactColumns {
    fn create(&self, table: SchemaRef, file: SchemaRef) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let changed = changed(&table, &file);
        if changed.is_empty() {
            return DefaultPhysicalExprAdapterFactory.create(table, Arc::clone(&file));
        }
        let mut exact = HashMap::new();
        let mut fields = table.fields().to_vec();
        for (at, own) in changed {
            let field = Arc::clone(&fields[at]);
            let adapter = ColumnAdapter::new(own.data_type(), &field);
            let adapter = adapter.map_err(|reason| corrupt(&self.table, own, reason))?;
            exact.insert(field.name().clone(), Arc::new(adapter));
            // DataFusion's adapter sees no difference in these columns, and leaves them as they are.
            fields[at] = Arc::clone(own);
        }
        let known = Arc::new(Schema::new_with_metadata(fields, table.metadata().clone()));
        let others = DefaultPhysicalExprAdapterFactory.create(known, Arc::clone(&file))?;
        Ok(Arc::new(ExactAdapter { table: Arc::clone(&self.table), exact, others }))
    }
}

/// The columns that are not left to DataFusion: the place in the table, and the file's field.
fn changed<'a>(table: &Schema, file: &'a Schema) -> Vec<(usize, &'a FieldRef)> {
    // Most files have the order of the table. A search for each of thousands of columns would take long.
    let by_name: LazyCell<HashMap<&str, &FieldRef>, _> =
        LazyCell::new(|| file.fields().iter().map(|own| (own.name().as_str(), own)).collect());
    let own = |(at, field): (usize, &FieldRef)| {
        let same_place = file.fields().get(at).filter(|own| own.name() == field.name());
        let own = same_place.or_else(|| by_name.get(field.name().as_str()).copied())?;
        (!files::is_cast_exactly(own.data_type(), field.data_type())).then_some((at, own))
    };
    table.fields().iter().enumerate().filter_map(own).collect()
}

/// The error of a column of a file. The file is named if no other one has a column of this type.
fn corrupt(table: &Opened, column: &FieldRef, reason: String) -> DataFusionError {
    let has_type =
        |schema: &Schema| schema.field_with_name(column.name()).is_ok_and(|own| own.data_type() == column.data_type());
    let mut files = table.files.iter().filter(|file| has_type(&file.schema));
    let path = match (files.next(), files.next()) {
        (Some(only), None) => &only.file.path,
        _ => &table.spec.path,
    };
    let (format, path) = (table.spec.format.as_str(), path.clone());
    DataFusionError::External(Box::new(CatalogError::Corrupt { table: table.spec.name.clone(), path, format, reason }))
}

#[derive(Debug)]
struct ExactAdapter {
    table: Arc<Opened>,
    /// The columns that are not left to DataFusion, by name.
    exact: HashMap<String, Arc<ColumnAdapter>>,
    others: Arc<dyn PhysicalExprAdapter>,
}

impl PhysicalExprAdapter for ExactAdapter {
    fn rewrite(&self, expression: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        let exact = |expression: Arc<dyn PhysicalExpr>| {
            let column = expression.downcast_ref::<Column>();
            let Some(adapter) = column.and_then(|column| self.exact.get(column.name())) else {
                return Ok(Transformed::no(expression));
            };
            let (table, adapter) = (Arc::clone(&self.table), Arc::clone(adapter));
            Ok(Transformed::yes(Arc::new(ExactColumn { table, column: expression, adapter }) as _))
        };
        self.others.rewrite(expression)?.transform_up(exact).data()
    }
}

/// A column of a file as a column of its table.
#[derive(Debug)]
struct ExactColumn {
    table: Arc<Opened>,
    column: Arc<dyn PhysicalExpr>,
    adapter: Arc<ColumnAdapter>,
}

impl ExactColumn {
    fn data_type(&self) -> &DataType {
        self.adapter.field().data_type()
    }
}

impl fmt::Display for ExactColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exactly({} AS {})", self.column, self.data_type())
    }
}

impl PartialEq for ExactColumn {
    fn eq(&self, other: &Self) -> bool {
        self.column.eq(&other.column) && Arc::ptr_eq(&self.adapter, &other.adapter)
    }
}

impl Eq for ExactColumn {}

impl Hash for ExactColumn {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.column.hash(state);
        self.data_type().hash(state);
    }
}

impl PhysicalExpr for ExactColumn {
    fn return_field(&self, _: &Schema) -> Result<FieldRef> {
        Ok(Arc::clone(self.adapter.field()))
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let own = self.column.return_field(batch.schema_ref())?;
        let column = self.column.evaluate(batch)?.into_array(batch.num_rows())?;
        let adapted = self.adapter.adapt(&column).map_err(|reason| corrupt(&self.table, &own, reason))?;
        Ok(ColumnarValue::Array(adapted))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.column]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        match <[_; 1]>::try_from(children) {
            Ok([column]) => {
                let (table, adapter) = (Arc::clone(&self.table), Arc::clone(&self.adapter));
                Ok(Arc::new(ExactColumn { table, column, adapter }))
            }
            Err(_) => Err(DataFusionError::Internal("a column has one child".to_owned())),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
