//! Columns within every type that has children, and the texts of these.

use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::*;

use super::leaves::{Leaf, ROWS};

/// A column, and its values in each format of text.
pub(crate) struct Case {
    pub(crate) array: ArrayRef,
    /// `None`: CSV refuses the column.
    pub(crate) csv: Option<[Option<String>; ROWS]>,
    pub(crate) table: [String; ROWS],
    /// `None`: JSON refuses the column.
    pub(crate) json: Option<[String; ROWS]>,
}

fn item(values: &ArrayRef) -> FieldRef {
    Arc::new(Field::new("item", values.data_type().clone(), true))
}

/// The rows of a list of the first value, none, the next two, and the last.
fn of_list(values: &[String; ROWS], separator: &str) -> [String; ROWS] {
    let [a, b, c, d] = values;
    [format!("[{a}]"), "[]".into(), format!("[{b}{separator}{c}]"), format!("[{d}]")]
}

/// The same column with a null in the last row, above values that are not null.
fn with_null(case: &Case) -> Case {
    let nulls = NullBuffer::from(vec![true, true, true, false]);
    let data = case.array.to_data().into_builder().nulls(Some(nulls)).build().unwrap();
    let (mut table, mut json) = (case.table.clone(), case.json.clone());
    table[3] = "NULL".into();
    json.as_mut().unwrap()[3] = "null".into();
    Case { array: make_array(data), csv: None, table, json }
}

/// The column alone, and as the child of every other type.
pub(crate) fn cases(leaf: &Leaf) -> Vec<Case> {
    let mut cases = of_lists(leaf);
    let nested = parents(leaf);
    let with_nulls: Vec<_> = cases.iter().chain(&nested).map(with_null).collect();
    cases.extend(nested);
    cases.extend(with_nulls);
    let (values, json) = (&leaf.array, &leaf.json);
    let table = leaf.texts.clone().map(|text| text.unwrap_or_else(|| "NULL".into()));
    let same =
        |array: ArrayRef| Case { array, csv: Some(leaf.texts.clone()), table: table.clone(), json: Some(json.clone()) };
    cases.push(same(Arc::clone(values)));
    cases.push(same(Arc::new(RunArray::try_new(&Int32Array::from(vec![1, 2, 3, 4]), values).unwrap())));
    let keys = Int8Array::from(vec![Some(2), Some(0), None, Some(1)]);
    // Row 0 is a null value of the dictionary, row 2 a null key.
    cases.push(Case {
        array: Arc::new(DictionaryArray::new(keys, Arc::clone(values))),
        csv: Some([None, leaf.texts[0].clone(), None, leaf.texts[1].clone()]),
        table: ["NULL".into(), table[0].clone(), "NULL".into(), table[1].clone()],
        json: Some(["null".into(), json[0].clone(), "null".into(), json[1].clone()]),
    });
    let variants: UnionFields = [(3, item(values))].into_iter().collect();
    let ids = ScalarBuffer::from(vec![3_i8; ROWS]);
    cases.push(Case {
        array: Arc::new(UnionArray::try_new(variants, ids, None, vec![Arc::clone(values)]).unwrap()),
        csv: None,
        table: table.map(|text| format!("{{item={text}}}")),
        json: None,
    });
    cases
}

fn parents(leaf: &Leaf) -> Vec<Case> {
    let (values, json) = (&leaf.array, &leaf.json);
    let table = leaf.texts.clone().map(|text| text.unwrap_or_else(|| "NULL".into()));
    let fields: Fields = vec![Field::new("a", values.data_type().clone(), true)].into();
    let of_struct = Case {
        array: Arc::new(StructArray::new(fields, vec![Arc::clone(values)], None)),
        csv: None,
        table: table.clone().map(|text| format!("{{a: {text}}}")),
        json: Some(json.clone().map(|text| format!("{{\"a\":{text}}}"))),
    };
    vec![of_struct, of_map(leaf, &table)]
}

fn of_lists(leaf: &Leaf) -> Vec<Case> {
    let (values, json) = (&leaf.array, &leaf.json);
    let table = leaf.texts.clone().map(|text| text.unwrap_or_else(|| "NULL".into()));
    let offsets = [0, 1, 1, 3, 4];
    let narrow = OffsetBuffer::new(ScalarBuffer::from(offsets.to_vec()));
    let wide = OffsetBuffer::new(ScalarBuffer::from(offsets.map(i64::from).to_vec()));
    let (starts, sizes) = ([0, 1, 1, 3], [1, 0, 2, 1]);
    let (wide_starts, wide_sizes) = (starts.map(i64::from).to_vec().into(), sizes.map(i64::from).to_vec().into());
    let lists: [ArrayRef; 4] = [
        Arc::new(ListArray::new(item(values), narrow, Arc::clone(values), None)),
        Arc::new(LargeListArray::new(item(values), wide, Arc::clone(values), None)),
        Arc::new(ListViewArray::new(
            item(values),
            starts.to_vec().into(),
            sizes.to_vec().into(),
            Arc::clone(values),
            None,
        )),
        Arc::new(LargeListViewArray::new(item(values), wide_starts, wide_sizes, Arc::clone(values), None)),
    ];
    let mut cases: Vec<_> = lists
        .into_iter()
        .map(|array| Case { array, csv: None, table: of_list(&table, ", "), json: Some(of_list(json, ",")) })
        .collect();
    cases.push(Case {
        array: Arc::new(FixedSizeListArray::new(item(values), 1, Arc::clone(values), None)),
        csv: None,
        table: table.map(|text| format!("[{text}]")),
        json: Some(json.clone().map(|text| format!("[{text}]"))),
    });
    cases
}

fn of_map(leaf: &Leaf, table: &[String; ROWS]) -> Case {
    let values = &leaf.array;
    let names = Arc::new(StringArray::from(vec!["k", "l", "m", "n"])) as ArrayRef;
    let pair: Fields =
        vec![Field::new("keys", DataType::Utf8, false), Field::new("values", values.data_type().clone(), true)].into();
    let entries = StructArray::new(pair, vec![names, Arc::clone(values)], None);
    let field = Arc::new(Field::new("entries", entries.data_type().clone(), false));
    let offsets = OffsetBuffer::new(ScalarBuffer::from(vec![0, 1, 1, 3, 4]));
    let ([a, b, c, d], [w, x, y, z]) = (table, &leaf.json);
    Case {
        array: Arc::new(MapArray::new(field, offsets, entries, None, false)),
        csv: None,
        table: [format!("{{k: {a}}}"), "{}".into(), format!("{{l: {b}, m: {c}}}"), format!("{{n: {d}}}")],
        json: Some([
            format!("{{\"k\":{w}}}"),
            "{}".into(),
            format!("{{\"l\":{x},\"m\":{y}}}"),
            format!("{{\"n\":{z}}}"),
        ]),
    }
}
