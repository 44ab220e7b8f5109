//! The types of JSON, from all records: every key, every form of number.

use std::collections::HashMap;

use arrow_schema::{DataType, Field, Fields};

use super::super::error::ReadError;
use super::super::numbers;
use super::lexer::Lexer;

/// Keys of all levels.
const MAX_KEYS: usize = 100_000;
const MAX_DECIMAL_DIGITS: usize = 38;
/// Every integer up to this one is exact as a 64-bit float.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Boolean,
    Number,
    String,
    Array,
    Object,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Boolean => "a boolean",
            Kind::Number => "a number",
            Kind::String => "a string",
            Kind::Array => "an array",
            Kind::Object => "an object",
        }
    }
}

/// The findings about a value: a column, a field of a struct or the elements of a list.
#[derive(Default)]
struct Node {
    /// The kind and where it was seen first.
    kind: Option<(Kind, u64)>,
    numbers: Numbers,
    /// Fields, by order of appearance; the only one of an array is its elements.
    children: Vec<Child>,
    places: HashMap<String, usize>,
}

struct Child {
    name: String,
    node: Node,
    /// The last object that had the key.
    object: u64,
}

#[derive(Default)]
struct Numbers {
    min: i128,
    max: i128,
    /// Lines of the first number with a point or exponent, and of the first integer that no float is sure to hold.
    float: Option<u64>,
    large: Option<u64>,
    /// Lines of the first integer, of the first number with a fraction, and of the first whole number with an exponent
    /// that no float is sure to hold, such as 1e300.
    integer: Option<u64>,
    fraction: Option<u64>,
    far: Option<u64>,
}

/// Collects the types of records.
#[derive(Default)]
pub(super) struct Inference {
    root: Node,
    keys: usize,
    objects: u64,
    /// Names on the way to the value, for errors.
    path: Vec<String>,
}

impl Inference {
    /// Reads a record.
    pub(super) fn record(&mut self, lexer: &mut Lexer) -> Result<(), ReadError> {
        let mut root = std::mem::take(&mut self.root);
        let result = self.value(lexer, &mut root, 1);
        self.root = root;
        result
    }

    /// Refuses columns that only the whole file shows to be inexact.
    pub(super) fn check(&mut self) -> Result<(), ReadError> {
        let root = std::mem::take(&mut self.root);
        let checked = self.check_node(&root);
        self.root = root;
        checked
    }

    fn check_node(&mut self, node: &Node) -> Result<(), ReadError> {
        node.numbers.check().map_err(|(line, reason)| self.flaw(line, &reason))?;
        for child in &node.children {
            self.path.push(child.name.clone());
            self.check_node(&child.node)?;
            self.path.pop();
        }
        Ok(())
    }

    /// The fields of the records.
    pub(super) fn fields(&self) -> Fields {
        self.root.fields()
    }

    fn flaw(&self, line: u64, reason: &str) -> ReadError {
        ReadError::at_line(line, format!("column {:?}: {reason}", self.path.join(".")))
    }

    fn value(&mut self, lexer: &mut Lexer, node: &mut Node, depth: usize) -> Result<(), ReadError> {
        let kind = match lexer.peek_token()? {
            b'n' => return lexer.word("null"),
            b't' | b'f' => Kind::Boolean,
            b'"' => Kind::String,
            b'[' => Kind::Array,
            b'{' => Kind::Object,
            _ => Kind::Number,
        };
        let line = lexer.line();
        let (known, known_line) = *node.kind.get_or_insert((kind, line));
        if known != kind {
            let reason = format!("{}, but in line {known_line} it is {}", kind.name(), known.name());
            return Err(self.flaw(line, &reason));
        }
        match kind {
            Kind::Object => self.object(lexer, node, depth),
            Kind::Array => self.array(lexer, node, depth),
            Kind::Number => {
                lexer.number()?;
                node.numbers.add(lexer.text(), line).map_err(|reason| self.flaw(line, &reason))
            }
            Kind::Boolean | Kind::String => lexer.skip(depth),
        }
    }

    fn object(&mut self, lexer: &mut Lexer, node: &mut Node, depth: usize) -> Result<(), ReadError> {
        lexer.descend(depth)?;
        self.objects += 1;
        let object = self.objects;
        let mut is_first = true;
        while lexer.has_next(b'}', is_first)? {
            is_first = false;
            lexer.key()?;
            let place = match node.places.get(lexer.text()) {
                Some(place) => *place,
                None => self.add_key(lexer, node)?,
            };
            let Some(child) = node.children.get_mut(place) else { continue };
            self.path.push(child.name.clone());
            if child.object == object {
                return Err(self.flaw(lexer.line(), "the key is twice in one object"));
            }
            child.object = object;
            self.value(lexer, &mut child.node, depth + 1)?;
            self.path.pop();
        }
        Ok(())
    }

    fn add_key(&mut self, lexer: &Lexer, node: &mut Node) -> Result<usize, ReadError> {
        self.keys += 1;
        if self.keys > MAX_KEYS {
            return Err(lexer.flaw(format!("more than {MAX_KEYS} different keys")));
        }
        let name = lexer.text().to_owned();
        node.places.insert(name.clone(), node.children.len());
        node.children.push(Child { name, node: Node::default(), object: 0 });
        Ok(node.children.len() - 1)
    }

    fn array(&mut self, lexer: &mut Lexer, node: &mut Node, depth: usize) -> Result<(), ReadError> {
        lexer.descend(depth)?;
        if node.children.is_empty() {
            node.children.push(Child { name: "item".to_owned(), node: Node::default(), object: 0 });
        }
        let Some(item) = node.children.first_mut() else { return Ok(()) };
        let mut is_first = true;
        while lexer.has_next(b']', is_first)? {
            is_first = false;
            self.value(lexer, &mut item.node, depth + 1)?;
        }
        Ok(())
    }
}

impl Node {
    fn fields(&self) -> Fields {
        self.children.iter().map(|child| Field::new(&child.name, child.node.data_type(), true)).collect()
    }

    fn data_type(&self) -> DataType {
        match self.kind {
            None => DataType::Null,
            Some((Kind::Boolean, _)) => DataType::Boolean,
            Some((Kind::String, _)) => DataType::Utf8,
            Some((Kind::Number, _)) => self.numbers.data_type(),
            Some((Kind::Array, _)) => {
                let item = self.children.first().map_or(DataType::Null, |item| item.node.data_type());
                DataType::List(Field::new("item", item, true).into())
            }
            // A struct without fields is beyond most readers.
            Some((Kind::Object, _)) if self.children.is_empty() => DataType::Null,
            Some((Kind::Object, _)) => DataType::Struct(self.fields()),
        }
    }
}

impl Numbers {
    fn add(&mut self, text: &str, line: u64) -> Result<(), String> {
        if !numbers::is_integer(text) {
            let Some(value) = numbers::float(text) else {
                return Err(format!("{text} is beyond the 64-bit floats"));
            };
            if value.fract() != 0.0 {
                self.fraction.get_or_insert(line);
            } else if value.abs() > MAX_EXACT {
                self.far.get_or_insert(line);
            }
            self.float.get_or_insert(line);
        } else {
            let value = text.parse::<i128>().ok().filter(|_| text.trim_start_matches('-').len() <= MAX_DECIMAL_DIGITS);
            let value = value.ok_or_else(|| format!("{text} has more than {MAX_DECIMAL_DIGITS} digits"))?;
            self.integer.get_or_insert(line);
            (self.min, self.max) = (self.min.min(value), self.max.max(value));
            if numbers::is_beyond_float(value) {
                self.large.get_or_insert(line);
            }
        }
        match (self.float, self.large) {
            (Some(float), Some(large)) => {
                Err(format!("no type holds both the fraction in line {float} and the large integer in line {large}"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a column of integers with a whole number that is not exact: no type holds both, and without a fraction
    /// the column is not one of floats.
    fn check(&self) -> Result<(), (u64, String)> {
        match (self.integer, self.far, self.fraction) {
            (Some(integer), Some(far), None) => {
                let reason =
                    format!("a whole number beyond 2^53 with an exponent, but the integer in line {integer} is exact");
                Err((far, reason))
            }
            _ => Ok(()),
        }
    }

    fn data_type(&self) -> DataType {
        if self.float.is_some() {
            DataType::Float64
        } else if self.min >= i128::from(i64::MIN) && self.max <= i128::from(i64::MAX) {
            DataType::Int64
        } else if self.min >= 0 && self.max <= i128::from(u64::MAX) {
            DataType::UInt64
        } else {
            DataType::Decimal128(38, 0)
        }
    }
}
