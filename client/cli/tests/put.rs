//! `thallus put` against a server: the values that arrive, and what happens to files that do not fit.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampSecondArray,
};
use arrow::compute::concat_batches;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use parquet::arrow::ArrowWriter;
use thallus_cli::failure::code;
use thallus_scripted_engine::{ScriptedEngine, SinkScript};
use thallus_server::engine::EngineError;

use support::server::{TestServer, outcome, thallus};
use support::{Scratch, batches, numbers};

const TABLE: &str = "numbers";
const LOCAL: i32 = code::LOCAL as i32;

fn server() -> TestServer {
    TestServer::new(ScriptedEngine::new().with_sink(TABLE, SinkScript::new()))
}

/// Exit code, stdout and stderr of `thallus put URL numbers FILE...`.
fn put(server: &TestServer, files: &[&Path], flags: &[&str]) -> (i32, String, String) {
    outcome(thallus().args(["put", &server.url(), TABLE]).args(files).args(flags).output().unwrap())
}

/// The rows of the only upload so far.
fn uploaded(server: &TestServer) -> RecordBatch {
    let uploads = server.engine.take_uploads(TABLE);
    assert_eq!(uploads.len(), 1);
    concat_batches(&uploads[0][0].schema(), &uploads[0]).unwrap()
}

fn write_parquet(path: &Path, batches: &[RecordBatch]) {
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batches[0].schema(), None).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.close().unwrap();
}

fn write_arrow(path: &Path, batches: &[RecordBatch], compression: Option<CompressionType>) {
    let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
    let file = File::create(path).unwrap();
    let mut writer = FileWriter::try_new_with_options(file, &batches[0].schema(), options).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
}

#[test]
fn files_of_every_binary_format_arrive_as_they_are() {
    let (dir, server) = (Scratch::new("put-binary"), server());
    let paths = ["p.parquet", "a.arrow", "z.feather", "s.arrows"].map(|name| dir.path(name));
    write_parquet(&paths[0], &batches());
    write_arrow(&paths[1], &batches(), None);
    write_arrow(&paths[2], &batches(), Some(CompressionType::ZSTD));
    let mut stream = StreamWriter::try_new(File::create(&paths[3]).unwrap(), &batches()[0].schema()).unwrap();
    batches().iter().for_each(|batch| stream.write(batch).unwrap());
    stream.finish().unwrap();
    let whole = concat_batches(&batches()[0].schema(), &batches()).unwrap();
    for path in &paths {
        let (code, out, err) = put(&server, &[path], &[]);
        assert_eq!((code, err.as_str()), (0, ""), "{path:?}");
        assert!(out.starts_with("7 rows of 1 file to numbers: 0 batches lent, "), "{out}");
        assert_eq!(uploaded(&server), whole, "{path:?}");
    }
    // All files of one call are one upload.
    let all: Vec<_> = paths.iter().map(std::path::PathBuf::as_path).collect();
    let (code, out, err) = put(&server, &all, &["--batch-rows", "3", "--mode", "create"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("28 rows of 4 files to numbers: "), "{out}");
    assert_eq!(uploaded(&server), concat_batches(&whole.schema(), &vec![whole; 4]).unwrap());
}

#[test]
fn texts_have_the_types_of_all_their_values() {
    let (dir, server) = (Scratch::new("put-texts"), server());
    let csv = dir.path("t.csv");
    let mut text = String::from("i,f,b,d,t,s,empty\n");
    text.push_str("1,1,true,2024-07-03,2024-07-03T11:46:40,\"a, \"\"b\"\"\",\n,,,,,,\n3,2.5,false,1970-01-01,,007x,\n");
    fs::write(&csv, text).unwrap();
    let column = |array: ArrayRef| array;
    let expected = RecordBatch::try_from_iter_with_nullable([
        ("i", column(Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]))), true),
        ("f", column(Arc::new(Float64Array::from(vec![Some(1.0), None, Some(2.5)]))), true),
        ("b", column(Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))), true),
        ("d", column(Arc::new(Date32Array::from(vec![Some(19907), None, Some(0)]))), true),
        ("t", column(Arc::new(TimestampSecondArray::from(vec![Some(1_720_007_200), None, None]))), true),
        ("s", column(Arc::new(StringArray::from(vec![Some("a, \"b\""), None, Some("007x")]))), true),
        ("empty", column(Arc::new(StringArray::from(vec![None::<&str>; 3]))), true),
    ])
    .unwrap();
    let (code, _, err) = put(&server, &[&csv], &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(uploaded(&server), expected);
    let json = dir.path("t.jsonl");
    fs::write(&json, "{\"i\":1,\"s\":\"a\",\"m\":1}\n{\"s\":null,\"m\":\"x\"}\n\n{\"i\":3,\"s\":\"\"}\n").unwrap();
    let (code, _, err) = put(&server, &[&json], &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    let got = uploaded(&server);
    let texts = |values: [Option<&str>; 3]| StringArray::from(values.to_vec());
    assert_eq!(got["i"].as_ref(), &Int64Array::from(vec![Some(1), None, Some(3)]) as &dyn arrow::array::Array);
    assert_eq!(got["s"].as_ref(), &texts([Some("a"), None, Some("")]) as &dyn arrow::array::Array);
    assert_eq!(got["m"].as_ref(), &texts([Some("1"), Some("x"), None]) as &dyn arrow::array::Array);
}

#[test]
fn the_text_for_null_and_the_delimiter_can_be_chosen() {
    let (dir, server) = (Scratch::new("put-null"), server());
    let csv = dir.path("t.txt");
    fs::write(&csv, "id;name\n0;NULL\n1;\n2;\"a;b\"\n").unwrap();
    let (code, _, err) = put(&server, &[&csv], &["--null", "NULL", "--delimiter", ";", "--format", "csv"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let names = StringArray::from(vec![None, Some(""), Some("a;b")]);
    assert_eq!(uploaded(&server)["name"].as_ref(), &names as &dyn arrow::array::Array);
}

#[test]
fn files_of_one_upload_may_order_their_columns_differently_and_one_may_have_no_value() {
    let (dir, server) = (Scratch::new("put-order"), server());
    let (a, b) = (dir.path("a.csv"), dir.path("b.csv"));
    fs::write(&a, "x,y\n,a\n").unwrap();
    fs::write(&b, "y,x\nb,5\n").unwrap();
    let (code, _, err) = put(&server, &[&a, &b], &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    let x: ArrayRef = Arc::new(Int64Array::from(vec![None, Some(5)]));
    let y: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
    assert_eq!(uploaded(&server), RecordBatch::try_from_iter_with_nullable([("x", x, true), ("y", y, true)]).unwrap());
}

#[test]
fn files_that_differ_are_refused_before_a_connection() {
    let dir = Scratch::new("put-differ");
    let (a, b, c) = (dir.path("a.csv"), dir.path("b.csv"), dir.path("c.csv"));
    fs::write(&a, "x,y\n1,2\n").unwrap();
    fs::write(&b, "x,y\n1,z\n").unwrap();
    fs::write(&c, "x\n1\n").unwrap();
    let refused = |files: [&Path; 2]| {
        let (code, out, err) =
            outcome(thallus().args(["put", "thallus://h.invalid", "t"]).args(files).output().unwrap());
        assert_eq!((code, out.as_str()), (i32::from(code::USAGE), ""), "{err}");
        err
    };
    let (a_name, b_name, c_name) = (a.display(), b.display(), c.display());
    let err = refused([&a, &b]);
    assert!(err.starts_with(&format!("error: column \"y\" is Utf8 in {b_name}, but Int64 in {a_name}\n")), "{err}");
    let err = refused([&a, &c]);
    assert!(err.starts_with(&format!("error: {c_name} has no column \"y\", but {a_name} has\nhint: ")), "{err}");
}

#[test]
fn a_damaged_file_ends_the_upload_and_nothing_is_written() {
    let (dir, server) = (Scratch::new("put-damaged"), server());
    let (good, bad, text) = (dir.path("good.parquet"), dir.path("bad.parquet"), dir.path("bad.csv"));
    write_parquet(&good, &[numbers(0, 2000)]);
    write_parquet(&bad, &[numbers(0, 2000)]);
    // The footer is whole, the pages are not.
    let mut bytes = fs::read(&bad).unwrap();
    let pages = bytes.len() / 2;
    bytes[4..pages].fill(0xff);
    File::create(&bad).unwrap().write_all(&bytes).unwrap();
    let (code, out, err) = put(&server, &[&good, &bad, &good], &["--batch-rows", "100"]);
    assert_eq!((code, out.as_str()), (LOCAL, ""), "{err}");
    assert!(err.contains(&format!("error: cannot read {}", bad.display())), "{err}");
    fs::write(&text, "id,name\n1,a\n2\n").unwrap();
    let (code, _, err) = put(&server, &[&text], &[]);
    assert_eq!(code, LOCAL);
    assert!(err.starts_with(&format!("error: cannot read {} as CSV: ", text.display())), "{err}");
    for (name, content) in [("bad.json", "{\"a\":1}\n{\"a\":"), ("bad.arrow", "ARROW1"), ("empty.parquet", "")] {
        fs::write(dir.path(name), content).unwrap();
        let (code, _, err) = put(&server, &[&dir.path(name)], &[]);
        assert_eq!(code, LOCAL, "{err}");
        assert!(err.starts_with("error: cannot read ") && err.contains(name), "{err}");
    }
    let (code, _, err) = put(&server, &[&dir.path("missing.csv")], &[]);
    assert_eq!(code, LOCAL);
    assert!(err.contains("missing.csv: No such file"), "{err}");
    let (code, _, err) = put(&server, &["/dev/null".as_ref()], &["--format", "csv"]);
    assert!(code == LOCAL && err.contains("no regular file"), "{err}");
    assert_eq!(server.engine.uploads(TABLE).len(), 0);
}

#[test]
fn a_server_that_takes_no_upload_says_why() {
    let dir = Scratch::new("put-refused");
    let path = dir.path("a.csv");
    fs::write(&path, "x\n1\n").unwrap();
    let read_only = EngineError::ReadOnly { statement: "uploading".into() };
    let full = EngineError::Execution { message: "the disk is full".into() };
    for (sink, message) in [
        (SinkScript::new().refuse(read_only), "uploading is not allowed: this server only answers queries"),
        (SinkScript::new().fail_at(0, full), "the disk is full"),
    ] {
        let server = TestServer::new(ScriptedEngine::new().with_sink(TABLE, sink));
        let (code, out, err) = put(&server, &[&path], &[]);
        assert_eq!((code, out.as_str()), (i32::from(code::QUERY), ""));
        assert!(err.starts_with("error: ") && err.contains(message), "{err}");
        assert_eq!(server.engine.uploads(TABLE).len(), 0);
    }
}

#[test]
fn a_file_without_rows_is_an_upload_without_rows() {
    let (dir, server) = (Scratch::new("put-empty"), server());
    let path = dir.path("empty.csv");
    fs::write(&path, "x,y\n").unwrap();
    let (code, out, err) = put(&server, &[&path], &["--quiet"]);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "", ""));
    assert_eq!(server.engine.uploads(TABLE), [Vec::<RecordBatch>::new()]);
}
