//! The operator `||`, as a function: its result is bounded like those of functions (see `bounds`).

use std::hash::Hash;

use arrow_array::builder::{GenericStringBuilder, StringViewBuilder};
use arrow_array::{ArrayRef, OffsetSizeTrait};
use arrow_schema::DataType;
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
use std::sync::Arc;

use super::bounds::{Arguments, check};

/// Replaces `a || b` by the function, if its result is text.
#[derive(Debug)]
pub(super) struct Rewrite(Arc<ScalarUDF>);

impl Rewrite {
    pub(super) fn new() -> Self {
        let signature = Signature::user_defined(Volatility::Immutable);
        Rewrite(Arc::new(ScalarUDF::new_from_impl(Concatenation { signature })))
    }
}

impl FunctionRewrite for Rewrite {
    fn name(&self) -> &str {
        "bounded concatenation"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        let Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) = &expr else {
            return Ok(Transformed::no(expr));
        };
        // Types that do not fit are an error of the analysis, which names them.
        let (Ok(a), Ok(b)) = (left.get_type(schema), right.get_type(schema)) else { return Ok(Transformed::no(expr)) };
        match result_type(&a, &b) {
            Ok(DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => {
                let args = vec![Expr::clone(left), Expr::clone(right)];
                Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func: Arc::clone(&self.0), args })))
            }
            _ => Ok(Transformed::no(expr)),
        }
    }
}

fn result_type(a: &DataType, b: &DataType) -> Result<DataType> {
    BinaryTypeCoercer::new(a, &Operator::StringConcat, b).get_result_type()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Concatenation {
    signature: Signature,
}

impl ScalarUDFImpl for Concatenation {
    fn name(&self) -> &str {
        "||"
    }

    fn display_name(&self, args: &[Expr]) -> Result<String> {
        Ok(args.iter().map(ToString::to_string).collect::<Vec<_>>().join(" || "))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [a, b] => result_type(a, b),
            _ => Err(DataFusionError::Internal("|| has two arguments".to_owned())),
        }
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let result = self.return_type(types)?;
        Ok(vec![result; types.len()])
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arguments = Arguments { args: &args.args, rows: args.number_rows };
        let texts = |row: usize| Some((arguments.text(0, row)?, arguments.text(1, row)?));
        check("||", arguments.sum(|row| texts(row).map(|(a, b)| a.len() as u64 + b.len() as u64)))?;
        let is_scalar = args.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let rows = if is_scalar { 1 } else { args.number_rows };
        let array: ArrayRef = match args.return_type() {
            DataType::LargeUtf8 => large_or_small::<i64>(rows, texts),
            DataType::Utf8View => {
                let mut builder = StringViewBuilder::with_capacity(rows);
                (0..rows).for_each(|row| builder.append_option(texts(row).map(|(a, b)| format!("{a}{b}"))));
                Arc::new(builder.finish())
            }
            _ => large_or_small::<i32>(rows, texts),
        };
        match is_scalar {
            true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?)),
            false => Ok(ColumnarValue::Array(array)),
        }
    }
}

fn large_or_small<'a, O: OffsetSizeTrait>(
    rows: usize,
    texts: impl Fn(usize) -> Option<(&'a str, &'a str)>,
) -> ArrayRef {
    let mut builder = GenericStringBuilder::<O>::with_capacity(rows, rows * 16);
    for row in 0..rows {
        builder.append_option(texts(row).map(|(a, b)| format!("{a}{b}")));
    }
    Arc::new(builder.finish())
}
