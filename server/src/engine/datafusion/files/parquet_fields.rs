//! The fields of a Parquet file's metadata that the reader of `parquet` knows, with their kinds.
//!
//! From <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>. A field that the reader
//! knows must not be missing here: a check that skips it by the kind in the file reads other values than the reader
//! does. A field that the reader does not know may be missing, and is then skipped as the reader skips it.

use super::thrift::Fields;
use super::thrift::Shape::{Binary, Bool, Byte, Double, I16, I32, I64, List, Struct};

/// `FileMetaData`.
pub(super) const FOOTER: Fields = &[
    (1, I32),
    (SCHEMA, List(&Struct(ELEMENT))),
    (3, I64),
    (ROW_GROUPS, List(&Struct(ROW_GROUP))),
    (5, List(&Struct(KEY_VALUE))),
    (6, Binary),
    (7, List(&Struct(COLUMN_ORDER))),
    (8, Struct(ENCRYPTION)),
    (9, Binary),
];
pub(super) const SCHEMA: i16 = 2;
pub(super) const ROW_GROUPS: i16 = 4;

/// `SchemaElement`.
pub(super) const ELEMENT: Fields = &[
    (1, I32),
    (2, I32),
    (3, I32),
    (4, Binary),
    (NUM_CHILDREN, I32),
    (6, I32),
    (7, I32),
    (8, I32),
    (9, I32),
    (10, Struct(LOGICAL_TYPE)),
];
pub(super) const NUM_CHILDREN: i16 = 5;

/// `LogicalType`, a union.
const LOGICAL_TYPE: Fields = &[
    (1, Struct(&[])),
    (2, Struct(&[])),
    (3, Struct(&[])),
    (4, Struct(&[])),
    (5, Struct(&[(1, I32), (2, I32)])),
    (6, Struct(&[])),
    (7, Struct(TIME)),
    (8, Struct(TIME)),
    (10, Struct(&[(1, Byte), (2, Bool)])),
    (11, Struct(&[])),
    (12, Struct(&[])),
    (13, Struct(&[])),
    (14, Struct(&[])),
    (15, Struct(&[])),
    (16, Struct(&[(1, Byte)])),
    (17, Struct(&[(1, Binary)])),
    (18, Struct(&[(1, Binary), (2, I32)])),
];
/// `TimeType` and `TimestampType`. The unit is a union.
const TIME: Fields = &[(1, Bool), (2, Struct(&[(1, Struct(&[])), (2, Struct(&[])), (3, Struct(&[]))]))];

/// `ColumnOrder`, a union.
const COLUMN_ORDER: Fields = &[(1, Struct(&[]))];
const KEY_VALUE: Fields = &[(1, Binary), (2, Binary)];
/// `EncryptionAlgorithm`, a union.
const ENCRYPTION: Fields = &[(1, Struct(AES_GCM)), (2, Struct(AES_GCM))];
const AES_GCM: Fields = &[(1, Binary), (2, Binary), (3, Bool)];

/// `RowGroup`.
pub(super) const ROW_GROUP: Fields = &[
    (COLUMNS, List(&Struct(COLUMN))),
    (2, I64),
    (3, I64),
    (4, List(&Struct(&[(1, I32), (2, Bool), (3, Bool)]))),
    (5, I64),
    (6, I64),
    (7, I16),
];
pub(super) const COLUMNS: i16 = 1;

/// `ColumnChunk`.
pub(super) const COLUMN: Fields = &[
    (1, Binary),
    (2, I64),
    (3, Struct(COLUMN_META_DATA)),
    (OFFSET_INDEX_PLACE, I64),
    (OFFSET_INDEX_LENGTH, I32),
    (COLUMN_INDEX_PLACE, I64),
    (COLUMN_INDEX_LENGTH, I32),
    (8, Struct(&[(1, Struct(&[])), (2, Struct(&[(1, List(&Binary)), (2, Binary)]))])),
    (9, Binary),
];
pub(super) const OFFSET_INDEX_PLACE: i16 = 4;
pub(super) const OFFSET_INDEX_LENGTH: i16 = 5;
pub(super) const COLUMN_INDEX_PLACE: i16 = 6;
pub(super) const COLUMN_INDEX_LENGTH: i16 = 7;

const COLUMN_META_DATA: Fields = &[
    (1, I32),
    (2, List(&I32)),
    (3, List(&Binary)),
    (4, I32),
    (5, I64),
    (6, I64),
    (7, I64),
    (8, List(&Struct(KEY_VALUE))),
    (9, I64),
    (10, I64),
    (11, I64),
    (12, Struct(STATISTICS)),
    (13, List(&Struct(&[(1, I32), (2, I32), (3, I32)]))),
    (14, I64),
    (15, I32),
    (16, Struct(&[(1, I64), (2, List(&I64)), (3, List(&I64))])),
    (17, Struct(&[(1, Struct(BOUNDING_BOX)), (2, List(&I32))])),
];
const STATISTICS: Fields =
    &[(1, Binary), (2, Binary), (3, I64), (4, I64), (5, Binary), (6, Binary), (7, Bool), (8, Bool)];
const BOUNDING_BOX: Fields =
    &[(1, Double), (2, Double), (3, Double), (4, Double), (5, Double), (6, Double), (7, Double), (8, Double)];

pub(super) const OFFSET_INDEX: Fields = &[(1, List(&Struct(&[(1, I64), (2, I32), (3, I64)]))), (2, List(&I64))];
pub(super) const COLUMN_INDEX: Fields = &[
    (1, List(&Bool)),
    (2, List(&Binary)),
    (3, List(&Binary)),
    (4, I32),
    (5, List(&I64)),
    (6, List(&I64)),
    (7, List(&I64)),
];

/// `PageHeader`.
pub(super) const PAGE: Fields = &[
    (1, I32),
    (UNCOMPRESSED_SIZE, I32),
    (COMPRESSED_SIZE, I32),
    (4, I32),
    (5, Struct(&[(1, I32), (2, I32), (3, I32), (4, I32), (5, Struct(STATISTICS))])),
    (6, Struct(&[])),
    (DICTIONARY_PAGE, Struct(DICTIONARY)),
    (8, Struct(&[(1, I32), (2, I32), (3, I32), (4, I32), (5, I32), (6, I32), (7, Bool), (8, Struct(STATISTICS))])),
];
pub(super) const UNCOMPRESSED_SIZE: i16 = 2;
pub(super) const COMPRESSED_SIZE: i16 = 3;
pub(super) const DICTIONARY_PAGE: i16 = 7;

/// `DictionaryPageHeader`.
pub(super) const DICTIONARY: Fields = &[(NUM_VALUES, I32), (2, I32), (3, Bool)];
pub(super) const NUM_VALUES: i16 = 1;
