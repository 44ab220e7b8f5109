//! Operators of SQL as functions that refuse what DataFusion's operators do not: `||` a result beyond the bound of
//! functions (see `bounds`), and `+`, `-`, `*` an integer beyond its type, which would wrap (DataFusion issue 17539).

use std::sync::Arc;

use arrow_array::builder::{GenericStringBuilder, StringViewBuilder};
use arrow_array::{Array, ArrayRef, Datum, OffsetSizeTrait};
use arrow_schema::{ArrowError, DataType};
use datafusion::arrow::compute::kernels::numeric;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::{BinaryExpr, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::bounds::{Arguments, check};

/// Longest chain of operators that is replaced. DataFusion's time for planning nested functions grows with the cube of
/// their depth. A longer chain keeps DataFusion's operators.
const MAX_DEPTH: usize = 32;

/// The operators that are replaced.
const OPERATORS: [Operator; 4] = [Operator::StringConcat, Operator::Plus, Operator::Minus, Operator::Multiply];

/// Replaces operators by functions, where their result is text or an integer.
#[derive(Debug)]
pub(super) struct Rewrite(Vec<Arc<ScalarUDF>>);

impl Rewrite {
    pub(super) fn new() -> Self {
        let function = |operator| {
            let signature = Signature::user_defined(Volatility::Immutable);
            Arc::new(ScalarUDF::new_from_impl(Checked { operator, name: operator.to_string(), signature }))
        };
        Rewrite(OPERATORS.into_iter().map(function).collect())
    }
}

impl FunctionRewrite for Rewrite {
    fn name(&self) -> &str {
        "checked operators"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = &expr else { return Ok(Transformed::no(expr)) };
        let Some(place) = OPERATORS.iter().position(|operator| operator == op) else {
            return Ok(Transformed::no(expr));
        };
        if depth(left).max(depth(right)) >= MAX_DEPTH {
            return Ok(Transformed::no(expr));
        }
        // Types that do not fit are an error of the analysis, which names them.
        let (Ok(a), Ok(b)) = (left.get_type(schema), right.get_type(schema)) else { return Ok(Transformed::no(expr)) };
        let replaced = match result_type(*op, &a, &b) {
            Ok(DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => *op == Operator::StringConcat,
            Ok(result) => result.is_integer(),
            Err(_) => false,
        };
        if !replaced {
            return Ok(Transformed::no(expr));
        }
        let args = vec![Expr::clone(left), Expr::clone(right)];
        Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func: Arc::clone(&self.0[place]), args })))
    }
}

/// Levels of replaced operators in an expression; [`MAX_DEPTH`] if one was left.
fn depth(expr: &Expr) -> usize {
    match expr {
        Expr::ScalarFunction(ScalarFunction { func, args }) if func.inner().downcast_ref::<Checked>().is_some() => {
            1 + args.iter().map(depth).max().unwrap_or(0)
        }
        Expr::BinaryExpr(BinaryExpr { op, .. }) if OPERATORS.contains(op) => MAX_DEPTH,
        Expr::Cast(cast) => depth(&cast.expr),
        _ => 0,
    }
}

fn result_type(operator: Operator, a: &DataType, b: &DataType) -> Result<DataType> {
    BinaryTypeCoercer::new(a, &operator, b).get_result_type()
}

/// An operator.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    operator: Operator,
    name: String,
    signature: Signature,
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        &self.name
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(args.iter().map(|arg| arg.schema_name().to_string()).collect::<Vec<_>>().join(&format!(" {} ", self.name)))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [a, b] => result_type(self.operator, a, b),
            _ => Err(DataFusionError::Internal(format!("{} has two arguments", self.name))),
        }
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let result = self.return_type(types)?;
        Ok(vec![result; types.len()])
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let kernel = match self.operator {
            Operator::Plus => numeric::add,
            Operator::Minus => numeric::sub,
            Operator::Multiply => numeric::mul,
            _ => return concatenated(&args),
        };
        calculated(&args, kernel)
    }
}

/// Applies a kernel that refuses an overflow.
fn calculated(
    args: &ScalarFunctionArgs,
    kernel: fn(&dyn Datum, &dyn Datum) -> std::result::Result<ArrayRef, ArrowError>,
) -> Result<ColumnarValue> {
    let array = match args.args.as_slice() {
        [ColumnarValue::Array(a), ColumnarValue::Array(b)] => kernel(a, b),
        [ColumnarValue::Array(a), ColumnarValue::Scalar(b)] => kernel(a, &b.to_scalar()?),
        [ColumnarValue::Scalar(a), ColumnarValue::Array(b)] => kernel(&a.to_scalar()?, b),
        [ColumnarValue::Scalar(a), ColumnarValue::Scalar(b)] => {
            let result = kernel(&a.to_scalar()?, &b.to_scalar()?)?;
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?));
        }
        _ => return Err(DataFusionError::Internal("an operator has two arguments".to_owned())),
    }?;
    Ok(ColumnarValue::Array(array))
}

fn concatenated(args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
    let arguments = Arguments { args: &args.args, rows: args.number_rows };
    let texts = |row: usize| Some((arguments.text(0, row)?, arguments.text(1, row)?));
    check("||", arguments.sum(|row| texts(row).map(|(a, b)| a.len() as u64 + b.len() as u64)))?;
    let is_scalar = args.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
    let rows = if is_scalar { 1 } else { args.number_rows };
    let array: ArrayRef = match args.return_type() {
        DataType::LargeUtf8 => of_offsets::<i64>(rows, texts),
        DataType::Utf8View => {
            let mut builder = StringViewBuilder::with_capacity(rows);
            (0..rows).for_each(|row| builder.append_option(texts(row).map(|(a, b)| format!("{a}{b}"))));
            Arc::new(builder.finish())
        }
        _ => of_offsets::<i32>(rows, texts),
    };
    debug_assert_eq!(array.len(), rows);
    match is_scalar {
        true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?)),
        false => Ok(ColumnarValue::Array(array)),
    }
}

fn of_offsets<'a, O: OffsetSizeTrait>(rows: usize, texts: impl Fn(usize) -> Option<(&'a str, &'a str)>) -> ArrayRef {
    let mut builder = GenericStringBuilder::<O>::with_capacity(rows, rows * 16);
    for row in 0..rows {
        builder.append_option(texts(row).map(|(a, b)| format!("{a}{b}")));
    }
    Arc::new(builder.finish())
}
