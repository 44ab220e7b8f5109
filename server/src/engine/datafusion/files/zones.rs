//! Names of UTC that Arrow's functions do not know.

use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, UnionFields};

/// Returns whether a time zone is UTC, by one of its names.
pub(super) fn is_utc(zone: &str) -> bool {
    matches!(zone, "Etc/UTC" | "+00:00" | "-00:00" | "+0000" | "+00") || zone.eq_ignore_ascii_case("utc") || is_z(zone)
}

/// The zone of ISO 8601, which some writers put in a schema.
fn is_z(zone: &str) -> bool {
    zone.eq_ignore_ascii_case("z")
}

/// The schema, with UTC instead of the names of it that Arrow's functions refuse.
pub(in super::super) fn with_known_zones(schema: SchemaRef) -> SchemaRef {
    if schema.fields().iter().all(|field| known(field.data_type()).is_none()) {
        return schema;
    }
    let fields: Fields = schema.fields().iter().map(field).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn field(field: &FieldRef) -> FieldRef {
    match known(field.data_type()) {
        Some(data_type) => Arc::new(Field::clone(field).with_data_type(data_type)),
        None => Arc::clone(field),
    }
}

/// The type with known zones; `None` if it has no other ones. Files are not nested deeper than the stack allows.
fn known(data_type: &DataType) -> Option<DataType> {
    use DataType::{
        Dictionary, FixedSizeList, LargeList, LargeListView, List, ListView, Map, RunEndEncoded, Struct, Timestamp,
        Union,
    };
    let changed = |own: &FieldRef| known(own.data_type()).map(|_| field(own));
    match data_type {
        Timestamp(unit, Some(zone)) if is_z(zone) || (zone.eq_ignore_ascii_case("utc") && &**zone != "UTC") => {
            Some(Timestamp(*unit, Some("UTC".into())))
        }
        List(item) => changed(item).map(List),
        LargeList(item) => changed(item).map(LargeList),
        ListView(item) => changed(item).map(ListView),
        LargeListView(item) => changed(item).map(LargeListView),
        FixedSizeList(item, length) => changed(item).map(|item| FixedSizeList(item, *length)),
        Map(entries, is_sorted) => changed(entries).map(|entries| Map(entries, *is_sorted)),
        RunEndEncoded(ends, values) => changed(values).map(|values| RunEndEncoded(Arc::clone(ends), values)),
        Dictionary(key, value) => known(value).map(|value| Dictionary(key.clone(), Box::new(value))),
        Struct(fields) if fields.iter().any(|field| known(field.data_type()).is_some()) => {
            Some(Struct(fields.iter().map(field).collect()))
        }
        Union(fields, mode) if fields.iter().any(|(_, field)| known(field.data_type()).is_some()) => {
            let fields: UnionFields = fields.iter().map(|(id, own)| (id, field(own))).collect();
            Some(Union(fields, *mode))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use arrow_schema::TimeUnit;

    use super::*;

    #[test]
    fn utc_has_one_name_at_every_depth() {
        let at = |zone: &str| DataType::Timestamp(TimeUnit::Microsecond, Some(zone.into()));
        let schema = |zone: &str| {
            let inner = Fields::from(vec![Field::new("a", at(zone), true), Field::new("b", at("Europe/Berlin"), true)]);
            let list = DataType::new_list(DataType::Struct(inner), true);
            let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(at(zone)));
            let fields = [("list", list), ("dictionary", dictionary), ("at", at(zone)), ("offset", at("+05:30"))];
            let fields: Fields = fields.into_iter().map(|(name, of)| Field::new(name, of, true)).collect();
            Arc::new(Schema::new_with_metadata(fields, [("key".to_owned(), "value".to_owned())].into()))
        };
        for zone in ["Z", "z", "utc", "UTC"] {
            assert_eq!(with_known_zones(schema(zone)), schema("UTC"), "{zone}");
        }
    }
}
