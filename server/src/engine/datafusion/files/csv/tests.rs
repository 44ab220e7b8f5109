use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::SchemaRef;

use super::super::error::Batches;
use super::*;

fn file(text: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.csv");
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

/// Types and rows as the integrator reads them: without evidence a column is text.
fn table_with(text: impl AsRef<[u8]>, options: &CsvOptions) -> Result<(String, Vec<String>), ReadError> {
    let (_directory, path) = file(text);
    let inspected = inspect(&path, options)?;
    let types: Vec<String> = inspected.fields().iter().map(|f| format!("{}:{}", f.name(), f.data_type())).collect();
    let schema = texts_for_null(&inspected);
    Ok((types.join(","), rows(read(&path, options, &schema, None, 8192, None)?)?))
}

fn texts_for_null(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Null => Field::new(field.name(), DataType::Utf8, true),
        _ => field.as_ref().clone(),
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn table(text: impl AsRef<[u8]>) -> Result<(String, Vec<String>), ReadError> {
    table_with(text, &CsvOptions::default())
}

#[track_caller]
fn check(text: &str, types: &str, want: &[&str]) {
    let (got_types, got) = table(text).unwrap();
    assert_eq!(got_types, types, "{text:?}");
    assert_eq!(got, want, "{text:?}");
}

fn flaw(text: impl AsRef<[u8]>) -> String {
    table(text).unwrap_err().to_string()
}

fn schema_of(fields: &[(&str, DataType)]) -> SchemaRef {
    Arc::new(Schema::new(fields.iter().map(|(n, t)| Field::new(*n, t.clone(), true)).collect::<Vec<_>>()))
}

/// Values of a column `a` of a given type.
fn typed(text: &str, data_type: DataType, options: &CsvOptions) -> Result<Vec<String>, ReadError> {
    let (_directory, path) = file(text);
    rows(read(&path, options, &schema_of(&[("a", data_type)]), None, 8192, None)?)
}

#[test]
fn types_and_values() {
    check("a,b\n1,x\n2,y\n", "a:Int64,b:Utf8", &["1|x", "2|y"]);
    check("a,b\n1,\n,2.5\n", "a:Int64,b:Float64", &["1|~", "~|2.5"]);
    check("a,b\n", "a:Null,b:Null", &[]);
    check("a,b\n,1\n,2\n", "a:Null,b:Int64", &["~|1", "~|2"]);
    check("a,b\n\"\",1\n,2\nx,3\n", "a:Utf8,b:Int64", &["|1", "~|2", "x|3"]);
    check("a\n\"\"\n1\n", "a:Int64", &["~", "1"]);
    check("zip,id\n01234,00000000000000000007\n", "zip:Utf8,id:Utf8", &["01234|00000000000000000007"]);
    check("a\n\"1,5\"\n1_000\n1e400\n+1\n", "a:Utf8", &["1,5", "1_000", "1e400", "+1"]);
    check(
        "a,b,c\nTrue,2024-01-31,2024-01-31T01:02:03.5\n",
        "a:Boolean,b:Date32,c:Timestamp(ms)",
        &["true|2024-01-31|2024-01-31T01:02:03.500"],
    );
    check("a\n2024-01-01T00:00:00+02:00\n", "a:Timestamp(s, \"UTC\")", &["2023-12-31T22:00:00Z"]);
}

#[test]
fn forms_of_lines_and_names() {
    let want = &["1|2", "3|4"];
    for text in [
        "a,b\n1,2\n3,4\n",
        "a,b\n1,2\n3,4",
        "a,b\r\n1,2\r\n3,4\r\n",
        "a,b\r1,2\r3,4\r",
        "a,b\n1,2\n\n3,4\n\n",
        "\n\na,b\n1,2\n3,4",
        "\u{feff}a,b\n1,2\n3,4",
        "\u{feff}\"a\",b\n1,2\n3,4\n",
    ] {
        check(text, "a:Int64,b:Int64", want);
    }
    check(" a, b\n1,2\n", " a:Int64, b:Int64", &["1|2"]);
    check("a,,a\n1,2,3\n", "a:Int64,:Int64,a:Int64", &["1|2|3"]);
    check("a,b\n\"x\ny\",2\n", "a:Utf8,b:Int64", &["x\ny|2"]);
    check("a,b\n1,5\" disk\n2,x\n", "a:Int64,b:Utf8", &["1|5\" disk", "2|x"]);
    check("a,b\n1,x\0y\n", "a:Int64,b:Utf8", &["1|x\0y"]);
}

#[test]
fn options() {
    let no_header = CsvOptions { header: false, ..CsvOptions::default() };
    let (types, got) = table_with("1,x\n2,y\n", &no_header).unwrap();
    assert_eq!((types.as_str(), got), ("column_1:Int64,column_2:Utf8", vec!["1|x".to_owned(), "2|y".to_owned()]));
    let text = CsvOptions { all_text: true, ..CsvOptions::default() };
    assert_eq!(table_with("a\n1\n", &text).unwrap().0, "a:Utf8");
    let null = CsvOptions { null: Some("NA".to_owned()), ..CsvOptions::default() };
    let (types, got) = table_with("a,b\nNA,NA\n1,\"NA\"\n,\n", &null).unwrap();
    assert_eq!((types.as_str(), got.join(" ").as_str()), ("a:Int64,b:Utf8", "~|~ 1|NA ~|"));
    let odd = CsvOptions { delimiter: b';', quote: b'\'', comment: Some(b'#'), escape: Some(b'\\'), ..text };
    let (_, got) = table_with("# c\na;b\n'x\\';y';\"z\n", &odd).unwrap();
    assert_eq!(got, ["x';y|\"z"]);
    let sample = CsvOptions { sample_rows: 1, ..CsvOptions::default() };
    assert_eq!(
        table_with("a,b\n1,1\n2,x\n", &sample).unwrap_err().to_string(),
        "line 3: column \"b\": \"x\" is not a value of Int64"
    );
}

#[test]
fn values_after_the_sample() {
    let after = |value: &str, first: &str| {
        let mut text = String::from("a,b\n");
        (0..1200).for_each(|_| text.push_str(&format!("{first},1\n")));
        table(text + value + ",1\n").map(|(_, rows)| rows.last().cloned().unwrap())
    };
    for value in ["1.5", "N/A", "1e300", "01234", "+1", "99999999999999999999", "1_0"] {
        let error = after(value, "7").unwrap_err().to_string();
        assert_eq!(error, format!("line 1202: column \"a\": {value:?} is not a value of Int64"));
    }
    assert_eq!(after("-8", "7").unwrap(), "-8|1");
    assert_eq!(after("text", "").unwrap(), "text|1");
    assert!(after("9007199254740993", "1.5").is_err());
    assert!(after("1e400", "1.5").is_err());
    assert!(after("2024-01-01T00:00:00", "2024-01-01").is_err());
    assert!(after("2024-01-01T00:00:00.5", "2024-01-01T00:00:00").is_err());
    assert!(after("2024-01-01T00:00:00+02:00", "2024-01-01T00:00:00").is_err());
    assert!(after("2024-02-30", "2024-01-01").is_err());
    assert!(after("yes", "true").is_err());
}

#[test]
fn flaws_name_the_line() {
    assert_eq!(flaw(""), "the file is empty");
    assert_eq!(flaw("\n\n"), "the file has no header line");
    assert_eq!(flaw("a,b\n1,2,3\n4,5\n"), "line 2: 3 fields, but 2 columns");
    assert_eq!(flaw("a,b\n1\n"), "line 2: 1 fields, but 2 columns");
    let many: String = (0..3000).map(|row| format!("{row},x\n")).collect();
    assert_eq!(flaw(format!("a,b\n{many}1,2,3\n")), "line 3002: 3 fields, but 2 columns");
    assert_eq!(flaw(format!("a,b\n{many}1\n")), "line 3002: 1 fields, but 2 columns");
    assert!(flaw(format!("a,b\n1,\"5 inch\n{many}")).starts_with("line 2: the quote opened here"));
    assert!(flaw(format!("a,b\n{many}1,\"5 inch\n{many}")).starts_with("line 3002: the quote opened here"));
    assert_eq!(flaw(b"a,b\n1,caf\xe9\n"), "line 2: column \"b\": the text is not UTF-8");
    assert!(flaw("a,b\n1,\"a \\\"b\\\" c\"\n").contains("escape"));
    assert!(flaw(b"\xff\xfea\0,\0").contains("UTF-16"));
}

#[test]
fn projections() {
    let (_directory, path) = file("a,b,c\n1,x,1.5\n2,y,\n");
    let options = CsvOptions::default();
    let schema = texts_for_null(&inspect(&path, &options).unwrap());
    let projected = |projection: &[usize]| read(&path, &options, &schema, Some(projection), 1, None);
    assert_eq!(rows(projected(&[2, 0]).unwrap()).unwrap(), ["1.5|1", "~|2"]);
    assert_eq!(rows(projected(&[1, 1]).unwrap()).unwrap(), ["x|x", "y|y"]);
    assert_eq!(rows(projected(&[]).unwrap()).unwrap(), ["", ""]);
    assert!(projected(&[3]).is_err());
}

#[test]
fn given_types() {
    let options = CsvOptions::default();
    let decimal = DataType::Decimal128(10, 2);
    assert_eq!(typed("a\n1.25\n-3\n", decimal.clone(), &options).unwrap(), ["1.25", "-3.00"]);
    assert_eq!(
        typed("a\n1.25\n1.255\n", decimal, &options).unwrap_err().to_string(),
        "line 3: column \"a\": \"1.255\" is not a value of Decimal128(10, 2)"
    );
    assert_eq!(typed("a\n\"\"\nx\n", DataType::Utf8View, &options).unwrap(), ["", "x"]);
    assert_eq!(typed("a\n\"\"\nx\n", DataType::LargeUtf8, &options).unwrap(), ["", "x"]);
    assert_eq!(typed("a\n7\n", DataType::Float64, &options).unwrap(), ["7.0"]);
    assert!(typed("a\n9007199254740993\n", DataType::Float64, &options).is_err());
    assert!(typed("a\n300\n", DataType::UInt8, &options).unwrap_err().to_string().starts_with("line 2: "));
    assert!(typed("a\nx\n", DataType::Null, &options).is_err());
    let declared = CsvOptions { declared: vec!["a".to_owned()], ..options };
    assert_eq!(typed("a\n007\n", DataType::Int64, &declared).unwrap(), ["7"]);
    assert_eq!(typed("a\n9007199254740993\n", DataType::Float64, &declared).unwrap(), ["9007199254740992.0"]);
    assert!(typed("a\n1.5\n", DataType::Int64, &declared).is_err());
}

#[test]
fn a_changed_header_is_an_error() {
    let (_directory, path) = file("a,b\n1,2\n");
    let options = CsvOptions::default();
    for other in [["a", "c"], ["b", "a"]] {
        let schema = schema_of(&other.map(|name| (name, DataType::Int64)));
        let error = read(&path, &options, &schema, None, 10, None).err().unwrap().to_string();
        assert!(error.contains("changed"), "{error}");
    }
    let schema = schema_of(&[("a", DataType::Int64)]);
    assert!(read(&path, &options, &schema, None, 10, Some(4..8)).err().unwrap().to_string().contains("changed"));
}

#[test]
fn parts_give_each_row_once() {
    let texts =
        ["a,b\n1,2\n\n3,4\n5,6", "\u{feff}\n\n# c\na,b\r\n1,2\r\n3,4\r\n", "# c\ra,b\r1,2\n3,4\r5,6\n", "a,b\n"];
    let options = CsvOptions { comment: Some(b'#'), ..CsvOptions::default() };
    let schema = schema_of(&[("a", DataType::Int64), ("b", DataType::Int64)]);
    for text in texts {
        let (_directory, path) = file(text);
        let whole = rows(read(&path, &options, &schema, None, 10, None).unwrap()).unwrap();
        for step in 1..=text.len() as u64 + 1 {
            let parts = (0..=text.len() as u64).step_by(usize::try_from(step).unwrap()).flat_map(|start| {
                rows(read(&path, &options, &schema, None, 10, Some(start..start + step)).unwrap()).unwrap()
            });
            assert_eq!(parts.collect::<Vec<_>>(), whole, "{text:?} by {step}");
        }
    }
}

#[test]
fn a_part_names_the_lines_of_the_file() {
    let (_directory, path) = file("a\r\n1\r\n2\r\nx\r\n\"y\nz\"\n");
    let schema = schema_of(&[("a", DataType::Int64)]);
    let flaw = |start| {
        let batches = read(&path, &CsvOptions::default(), &schema, None, 1, Some(start..start + 1)).unwrap();
        rows(batches).unwrap_err().to_string()
    };
    assert!(flaw(9).starts_with("line 4: column"), "{}", flaw(9));
    assert!(flaw(12).starts_with("line 5: a line ends within the quotes"), "{}", flaw(12));
    assert!(has_quoted_newlines(&path, &CsvOptions::default()).unwrap());
    let (_directory, path) = file("a\n\"1\"\n2\n");
    assert!(!has_quoted_newlines(&path, &CsvOptions::default()).unwrap());
}

#[test]
fn large_fields_and_wide_rows() {
    let (_directory, path) = file(format!("a,b\n1,{}\n2,y\n", "x".repeat(20_000_000)));
    let schema = inspect(&path, &CsvOptions::default()).unwrap();
    let batches = read(&path, &CsvOptions::default(), &Arc::new(schema), None, 8192, None).unwrap();
    let batches: Vec<RecordBatch> = batches.map(Result::unwrap).collect();
    let lengths = batches.iter().flat_map(|b| b.column(1).as_string::<i32>().iter().flatten().map(str::len));
    assert_eq!(lengths.collect::<Vec<_>>(), [20_000_000, 1]);

    let names: Vec<String> = (0..20_000).map(|column| format!("c{column}")).collect();
    let row = vec!["1"; 20_000].join(",");
    let (_directory, path) = file(format!("{}\n{row}\n{row}\n", names.join(",")));
    let schema = inspect(&path, &CsvOptions::default()).unwrap();
    let batches = read(&path, &CsvOptions::default(), &Arc::new(schema), Some(&[5]), 8192, None).unwrap();
    let batches: Vec<RecordBatch> = batches.map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    assert_eq!(batches[0].column(0).as_primitive::<Int64Type>().value(0), 1);
}

#[test]
fn nothing_follows_an_error() {
    let (_directory, path) = file("a\n1\nx\n2\n");
    let mut batches =
        read(&path, &CsvOptions::default(), &schema_of(&[("a", DataType::Int64)]), None, 1, None).unwrap();
    assert!(batches.next().unwrap().is_ok());
    assert!(batches.next().unwrap().is_err());
    assert!(batches.next().is_none());
}
