use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::{DataType, Field};

use std::path::PathBuf;

use super::*;

const PLAIN: JsonOptions = JsonOptions { compression: Compression::None };

fn file(text: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.json");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

/// Rows as text, fields joined by `|`, NULL as `~`.
fn rows(batches: Batches) -> Result<Vec<String>, ReadError> {
    let mut all = Vec::new();
    for batch in batches {
        let batch = batch?;
        let options = FormatOptions::default().with_null("~");
        let columns: Vec<_> = batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            all.push(columns.iter().map(|c| c.value(row).to_string()).collect::<Vec<_>>().join("|"));
        }
    }
    Ok(all)
}

fn types(schema: &Schema) -> String {
    schema.fields().iter().map(|f| format!("{}:{}", f.name(), f.data_type())).collect::<Vec<_>>().join(",")
}

fn table(text: impl AsRef<[u8]>) -> Result<(Schema, Vec<String>), ReadError> {
    let (_directory, path) = file(text);
    let schema = inspect(&path, &PLAIN)?.schema;
    let rows = rows(read(&path, &PLAIN, &Arc::new(schema.clone()), 2, None)?)?;
    Ok((schema, rows))
}

#[track_caller]
fn check(text: &str, want_types: &str, want: &[&str]) {
    let (schema, got) = table(text).unwrap();
    assert_eq!(types(&schema), want_types, "{text}");
    assert_eq!(got, want, "{text}");
}

fn flaw(text: impl AsRef<[u8]>) -> String {
    table(text).unwrap_err().to_string()
}

fn schema_of(fields: &[(&str, DataType)]) -> SchemaRef {
    Arc::new(Schema::new(fields.iter().map(|(n, t)| Field::new(*n, t.clone(), true)).collect::<Vec<_>>()))
}

fn typed(text: &str, data_type: DataType) -> Result<Vec<String>, ReadError> {
    let (_directory, path) = file(text);
    rows(read(&path, &PLAIN, &schema_of(&[("a", data_type)]), 2, None)?)
}

#[test]
fn numbers_are_exact() {
    check(r#"{"a":1}{"a":-9223372036854775808}{"a":null}"#, "a:Int64", &["1", "-9223372036854775808", "~"]);
    check(r#"{"a":18446744073709551615}{"a":1}"#, "a:UInt64", &["18446744073709551615", "1"]);
    check(r#"{"a":18446744073709551615}{"a":-1}"#, "a:Decimal128(38, 0)", &["18446744073709551615", "-1"]);
    let large = "99999999999999999999999999999999999999";
    check(&format!("{{\"a\":{large}}}"), "a:Decimal128(38, 0)", &[large]);
    check(r#"{"a":1}{"a":1.5}{"a":1e2}"#, "a:Float64", &["1.0", "1.5", "100.0"]);
    assert!(flaw(r#"{"a":999999999999999999999999999999999999999}"#).starts_with("line 1: column \"a\": "));
    assert!(flaw("{\"a\":1.5}\n{\"a\":9007199254740993}").starts_with("line 2: column \"a\": no type holds both"));
    assert!(flaw("{\"a\":9007199254740993}\n{\"a\":1.5}").starts_with("line 2: "));
    assert!(flaw("{\"a\":1}\n\n{\"a\":1e400}").starts_with("line 3: "));
}

#[test]
fn keys_and_nesting() {
    check("{\"a\":1}\n{\"late\":\"x\",\"a\":2}\n{}\n", "a:Int64,late:Utf8", &["1|~", "2|x", "~|~"]);
    check(r#"{"n":null,"b":true}"#, "n:Null,b:Boolean", &["~|true"]);
    let (schema, got) = table(r#"{"s":{"x":1,"y":[1.5,null]}} {"s":null} {"s":{"z":"q"}} {"s":{"y":[]}}"#).unwrap();
    let item = |data_type| DataType::List(Arc::new(Field::new("item", data_type, true)));
    let fields = [("x", DataType::Int64), ("y", item(DataType::Float64)), ("z", DataType::Utf8)];
    let fields = fields.map(|(name, data_type)| Field::new(name, data_type, true));
    assert_eq!(*schema.field(0).data_type(), DataType::Struct(fields.into_iter().collect()));
    assert_eq!(got, ["{x: 1, y: [1.5, ~], z: ~}", "~", "{x: ~, y: ~, z: q}", "{x: ~, y: [], z: ~}"]);
    let (schema, got) = table(r#"{"l":[]}{"l":null}"#).unwrap();
    assert_eq!((schema.field(0).data_type(), got), (&item(DataType::Null), vec!["[]".to_owned(), "~".to_owned()]));
    let (_, got) = table(r#"{"l":[[1],[],null]}{"l":[{}]}"#).unwrap_or_else(|e| (Schema::empty(), vec![e.to_string()]));
    assert!(got[0].starts_with("line 1: column \"l\": an object, but in line 1 it is an array"), "{got:?}");
    check(r#"{"l":[[1,2],[],null]}"#, "l:List(List(Int64))", &["[[1, 2], [], ~]"]);
    check(r#"{"e":{}}{"e":null}"#, "e:Null", &["~", "~"]);
    assert_eq!(typed(r#"{"a":{}}"#, DataType::Utf8).unwrap(), ["~"]);
}

#[test]
fn forms_of_files() {
    let want = &["1|x", "2|y"];
    for text in [
        "{\"a\":1,\"b\":\"x\"}\n{\"a\":2,\"b\":\"y\"}\n",
        "{\"a\":1,\"b\":\"x\"}\r\n\r\n{\"a\":2,\"b\":\"y\"}",
        "{\"a\":1,\"b\":\"x\"}{\"a\":2,\"b\":\"y\"}",
        "{\n  \"a\" : 1,\n  \"b\": \"x\"\n}\n{\n\"a\":2,\"b\":\"y\"\n}\n",
        "\u{feff}{\"a\":1,\"b\":\"x\"}\n{\"a\":2,\"b\":\"y\"}\n",
        "[{\"a\":1,\"b\":\"x\"},\n {\"a\":2,\"b\":\"y\"}]\n",
        " [\n{\"a\":1,\"b\":\"x\"}\n,{\"a\":2,\"b\":\"y\"}\n]",
        "\u{feff}[{\"a\":1,\"b\":\"\\u0078\"},{\"a\":2,\"b\":\"y\"}]",
    ] {
        check(text, "a:Int64,b:Utf8", want);
    }
    check("[]", "", &[]);
    check("\n", "", &[]);
    let lines = |text: &str| {
        let (_directory, path) = file(text);
        let inspection = inspect(&path, &PLAIN).unwrap();
        inspection.is_lines
    };
    assert!(lines("{}\n\n {} \n{}"));
    assert!(!lines("{}{}\n"));
    assert!(!lines("{\n}\n"));
    assert!(!lines("[{}\n,{}]"));
}

#[test]
fn integers_and_one_inexact_whole_number_are_refused() {
    assert!(flaw("{\"a\":1}\n{\"a\":1e300}").starts_with("line 2: column \"a\": a whole number beyond 2^53"));
    assert!(flaw("{\"a\":[1,-1e20]}").starts_with("line 1: column \"a.item\""));
    // A fraction shows that the column is one of floats.
    check("{\"a\":0}\n{\"a\":6.02e23}\n{\"a\":0.5}\n", "a:Float64", &["0.0", "6.02e23", "0.5"]);
}

#[test]
fn flaws_name_the_line() {
    assert_eq!(flaw(""), "the file is empty");
    assert_eq!(flaw("{\"a\":1}\n{\"a\":\"x\"}"), "line 2: column \"a\": a string, but in line 1 it is a number");
    assert!(flaw("{\"a\":{\"b\":1}}\n{\"a\":{\"b\":[1]}}").starts_with("line 2: column \"a.b\": an array"));
    assert!(flaw("{\"a\":1}\n{\"a\":1,\"b\":2,\"a\":3}").starts_with("line 2: column \"a\": the key is twice"));
    assert!(flaw("{\"s\":{\"a\":1,\n\"a\":3}}").starts_with("line 2: column \"s.a\": the key is twice"));
    for text in [
        "{\"a\":1}\n5",
        "{\"a\":1}\n[1]",
        "{\"a\":1}\n\"x\"",
        "{\"a\":1}\n{\"a\":01}",
        "{\"a\":1}\n{\"a\":NaN}",
        "{\"a\":1}\n{\"a\":tru}",
        "{\"a\":1}\n{\"a\":1",
        "{\"a\":1}\n{\"a\" 1}",
        "{\"a\":1}\n{a:1}",
        "{\"a\":1}\n{\"a\":1,}",
        "{\"a\":1}\n{\"b\":\"x",
        "{\"a\":1}\n}",
        "{\"a\":1}\n{\"a\":1 2}",
        "[{\"a\":1}\n{}]",
        "[{\"a\":1},\n]",
        "[{\"a\":1}]\nx",
        "{\"a\":1},\n{\"a\":2}",
        "{\"a\":1}\n{\"b\":\"x\ny\"}",
    ] {
        let error = flaw(text);
        let line = if text.starts_with("{\"a\":1},") { "line 1: " } else { "line 2: " };
        assert!(error.starts_with(line), "{text:?}: {error}");
    }
    assert!(flaw("[{\"a\":1}").contains("ends"));
    assert!(flaw(b"{\"a\":\"caf\xe9\"}").contains("UTF-8"));
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
    assert!(flaw(deep).contains("levels"));
    let deep = format!("{{\"a\":{}1{}}}", "{\"x\":".repeat(99), "}".repeat(99));
    assert!(table(deep).is_ok());
}

#[test]
fn given_types() {
    for value in ["1.5", "1e300", "-0.9", "99999999999999999999", "1.0", "\"1\"", "true", "[1]", "{\"x\":1}"] {
        let error = typed(&format!("{{\"a\":1}}\n{{\"a\":{value}}}"), DataType::Int64).unwrap_err().to_string();
        assert!(error.starts_with("line 2: column \"a\": "), "{error}");
    }
    assert_eq!(typed(r#"{"a":7}"#, DataType::Float64).unwrap(), ["7.0"]);
    assert!(typed(r#"{"a":9007199254740993}"#, DataType::Float64).is_err());
    assert_eq!(typed(r#"{"a":7}{"b":1}"#, DataType::Decimal128(38, 0)).unwrap(), ["7", "~"]);
    assert!(typed(r#"{"a":7.5}"#, DataType::Decimal128(38, 0)).is_err());
    for text in [DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View] {
        assert_eq!(typed(r#"{"a":"x"}{"a":""}"#, text.clone()).unwrap(), ["x", ""]);
        assert!(typed(r#"{"a":5}"#, text.clone()).is_err());
        assert!(typed(r#"{"a":true}"#, text).is_err());
    }
    assert_eq!(
        typed("{\"a\":1}\n\n{\"a\":300}", DataType::UInt8).unwrap_err().to_string(),
        "line 3: column \"a\": 300 is not a value of UInt8"
    );
    assert_eq!(typed(r#"{"a":"2024-01-31"}"#, DataType::Date32).unwrap(), ["2024-01-31"]);
    let list = DataType::LargeList(Arc::new(Field::new("item", DataType::Int64, true)));
    assert_eq!(typed(r#"{"a":[1,2]}{"a":[]}"#, list.clone()).unwrap(), ["[1, 2]", "[]"]);
    assert!(typed(r#"{"a":[1,2.5]}"#, list).is_err());
    let fixed = DataType::FixedSizeList(Arc::new(Field::new("item", DataType::Int64, true)), 1);
    assert!(typed(r#"{"a":[1]}"#, fixed).is_err());
}

#[test]
fn projections() {
    let (_directory, path) = file("{\"a\":1,\"b\":\"x\",\"c\":{\"q\":[1]}}\n{\"c\":null}\n{\"b\":\"y\"}\n");
    let read = |fields: &[(&str, DataType)]| rows(read(&path, &PLAIN, &schema_of(fields), 2, None).unwrap()).unwrap();
    assert_eq!(read(&[("b", DataType::Utf8), ("a", DataType::Int64)]), ["x|1", "~|~", "y|~"]);
    assert_eq!(read(&[]), ["", "", ""]);
    assert_eq!(read(&[("none", DataType::Utf8)]), ["~", "~", "~"]);
}

#[test]
fn parts_give_each_row_once() {
    let text = "\u{feff}{\"a\":1}\n{\"a\":22}\n\n{\"a\":333}\r\n{\"a\":4}";
    let (_directory, path) = file(text);
    let schema = schema_of(&[("a", DataType::Int64)]);
    for step in 1..=text.len() as u64 {
        let parts = (0..text.len() as u64)
            .step_by(usize::try_from(step).unwrap())
            .flat_map(|start| rows(read(&path, &PLAIN, &schema, 10, Some(start..start + step)).unwrap()).unwrap());
        assert_eq!(parts.collect::<Vec<_>>(), ["1", "22", "333", "4"], "by {step}");
    }
    let (_directory, path) = file("{\"a\":1}\n{\"a\":2}\n{\"a\":1.5}\n{\n\"a\":3}\n");
    let flaw = |start| rows(read(&path, &PLAIN, &schema, 1, Some(start..start + 1)).unwrap()).unwrap_err().to_string();
    assert!(flaw(16).starts_with("line 3: column \"a\": 1.5"), "{}", flaw(16));
    assert!(flaw(26).contains("ends within a record"), "{}", flaw(26));
}

#[test]
fn wide_and_large_records() {
    let fields: Vec<String> = (0..20_000).map(|column| format!("\"c{column}\":1")).collect();
    let (_directory, path) = file(format!("{{{}}}\n{{}}\n", fields.join(",")));
    let schema = inspect(&path, &PLAIN).unwrap().schema;
    assert_eq!(schema.fields().len(), 20_000);
    let batches: Vec<_> = read(&path, &PLAIN, &Arc::new(schema), 8192, None).unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    let (_, got) = table(format!("{{\"a\":\"{}\"}}", "x".repeat(20_000_000))).unwrap();
    assert_eq!(got[0].len(), 20_000_000);
}

#[test]
fn nothing_follows_an_error() {
    let (_directory, path) = file("{\"a\":1}\n{\"a\":\"x\"}\n{\"a\":2}\n");
    let mut batches = read(&path, &PLAIN, &schema_of(&[("a", DataType::Int64)]), 1, None).unwrap();
    assert!(batches.next().unwrap().is_ok());
    assert!(batches.next().unwrap().is_err());
    assert!(batches.next().is_none());
}
