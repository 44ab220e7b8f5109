//! Scripts that the engine plays, and their expected results.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow_array::{Array, DictionaryArray, Int32Array, RecordBatch, StringArray};
use arrow_schema::{Field, Schema, SchemaRef};
use thallus_scripted_engine::{self as scripted, ScriptedEngine, SinkScript, synthetic_batch, synthetic_schema};
use thallus_server::engine::EngineError;

use crate::dice::Dice;

/// The end of a query at the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The query succeeds.
    Finish,
    /// The query fails.
    Fail,
    /// The query never ends.
    Hang,
    /// The query never ends, and the engine's work goes on after its cancel.
    IgnoreCancel,
}

impl Ending {
    /// Returns whether the query lacks an end of its own.
    #[must_use]
    pub fn is_never(self) -> bool {
        matches!(self, Ending::Hang | Ending::IgnoreCancel)
    }
}

/// A query's script.
#[derive(Clone)]
pub struct Script {
    /// Batches, each with the wait before it.
    pub batches: Vec<(Duration, RecordBatch)>,
    /// The end after the batches.
    pub ending: Ending,
    /// Whether the engine refuses the query at once.
    pub refused: bool,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> = self.batches.iter().map(|(_, batch)| batch.num_rows()).collect();
        write!(f, "{rows:?}, then {:?}{}", self.ending, if self.refused { ", refused" } else { "" })
    }
}

impl Script {
    /// Draws some scripts. The first always succeeds.
    pub fn draw_all(dice: &mut Dice, fault_free: bool) -> Vec<Script> {
        (0..dice.within(2, 4))
            .map(|index| Script::draw(dice, u64::from(index) << 20, fault_free || index == 0))
            .collect()
    }

    fn draw(dice: &mut Dice, first: u64, works: bool) -> Self {
        let slow = dice.percent(30);
        let count = dice.pick(&[0, 1, 3, 6, 10]);
        let batches = (0..count)
            .map(|index| {
                let rows = match dice.within(0, 9) {
                    0..=3 => dice.within(1, 20),
                    4..=7 => dice.within(100, 300),
                    _ => dice.within(400, 900),
                };
                let wait = if slow { dice.millis(0, 60) } else { Duration::ZERO };
                (wait, synthetic_batch(first + index, rows as usize))
            })
            .collect();
        // Every second script has dictionaries, each shared by two successive batches.
        let batches = if (first >> 8 | first >> 20) % 2 == 1 { with_words(batches) } else { batches };
        let ending = match dice.within(0, 19) {
            _ if works => Ending::Finish,
            0..=3 => Ending::Fail,
            4 => Ending::Hang,
            5 => Ending::IgnoreCancel,
            _ => Ending::Finish,
        };
        Script { batches, ending, refused: !works && dice.percent(8) }
    }

    /// Draws the source of an upload, with one batch at least. `number` is unique, so the batches are unique in the
    /// run.
    pub fn draw_source(dice: &mut Dice, number: u64, works: bool) -> Self {
        // Batches of queries have lower numbers.
        let first = (1 << 40) | number << 8;
        loop {
            let source = Script { refused: false, ..Script::draw(dice, first, works) };
            if !source.batches.is_empty() {
                return source;
            }
        }
    }

    /// The schema of all batches.
    pub fn schema(&self) -> SchemaRef {
        self.batches.first().map_or_else(synthetic_schema, |(_, batch)| batch.schema())
    }

    /// The batches that a query must yield.
    pub fn expected(&self, batch_rows: Option<u32>) -> Vec<RecordBatch> {
        let rows = batch_rows.map_or(usize::MAX, |rows| rows as usize);
        let mut expected = Vec::new();
        for (_, batch) in &self.batches {
            for start in (0..batch.num_rows()).step_by(rows) {
                expected.push(batch.slice(start, rows.min(batch.num_rows() - start)));
            }
        }
        expected
    }

    /// The batches of one of `count` partitions, which are assigned in turn.
    pub fn part(&self, index: usize, count: usize) -> Vec<RecordBatch> {
        self.batches.iter().skip(index).step_by(count).map(|(_, batch)| batch.clone()).collect()
    }

    /// Names of the script's properties, for the counts.
    pub fn traits(&self) -> impl Iterator<Item = &'static str> {
        let ending = match self.ending {
            _ if self.refused => "refuses",
            Ending::Finish => "finishes",
            Ending::Fail => "fails",
            Ending::Hang => "hangs",
            Ending::IgnoreCancel => "ignores its cancel",
        };
        let slow = self.batches.iter().any(|(wait, _)| !wait.is_zero());
        [Some(ending), slow.then_some("is slow")].into_iter().flatten()
    }

    /// The scripts of `count` partitions. The last one ends as the whole does.
    fn play_parts(&self, count: usize) -> Vec<scripted::Script> {
        let part = |index: usize| {
            let ending = if index + 1 == count { self.ending } else { Ending::Finish };
            let batches = self.batches.iter().skip(index).step_by(count).cloned().collect();
            Script { batches, ending, refused: self.refused }.play()
        };
        (0..count).map(part).collect()
    }

    fn play(&self) -> scripted::Script {
        let error = EngineError::Execution { message: "as scripted".to_owned() };
        if self.refused {
            return scripted::Script::refuse(error);
        }
        let mut script = scripted::Script::new(self.schema());
        for (wait, batch) in &self.batches {
            if !wait.is_zero() {
                script = script.sleep(*wait);
            }
            script = script.batch(batch.clone());
        }
        match self.ending {
            Ending::Finish => script,
            Ending::Fail => script.fail(error),
            Ending::Hang => script.hang(),
            Ending::IgnoreCancel => script.ignore_cancel(),
        }
    }
}

/// The batches with an additional column of words: keys into one of two dictionaries.
fn with_words(batches: Vec<(Duration, RecordBatch)>) -> Vec<(Duration, RecordBatch)> {
    let words = |word| Arc::new(StringArray::from_iter_values((0..50).map(|number| format!("{word} {number}"))));
    let dictionaries = [words("word"), words("another")];
    let with = |(index, (wait, batch)): (usize, (Duration, RecordBatch))| {
        let keys: Int32Array = (0..batch.num_rows()).map(|row| (row % 7 > 0).then_some(row as i32 % 50)).collect();
        let column = DictionaryArray::new(keys, dictionaries[index / 2 % 2].clone());
        let fields = batch.schema().fields().iter().cloned().collect::<Vec<_>>();
        let word = Arc::new(Field::new("word", column.data_type().clone(), true));
        let schema = Arc::new(Schema::new([fields, vec![word]].concat()));
        let columns = [batch.columns(), &[Arc::new(column)]].concat();
        (wait, RecordBatch::try_new(schema, columns).expect("columns of the same length"))
    };
    batches.into_iter().enumerate().map(with).collect()
}

/// A query without an end.
pub const ENDLESS: &str = "endless";
/// A query without an end, which is requested without credit only.
pub const UNPAID: &str = "endless, without credit";
/// A query without an end, with large batches.
pub const LARGE: &str = "endless, large";
/// Rows of each batch of [`LARGE`]: less than the least limit of bytes on loan.
const LARGE_ROWS: usize = 2000;
/// Most bytes of a batch of [`LARGE`], the largest batches of all.
pub const LARGE_BYTES: u64 = 256_000;

/// The behaviour of a table for uploads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Accepts them.
    Takes,
    /// Accepts them slowly.
    IsSlow,
    /// Fails at the second batch, or at the end if there is none.
    Fails,
    /// Refuses them.
    Refuses,
}

/// The tables for uploads.
pub const TABLES: [&str; 4] = ["takes", "is slow", "fails", "refuses"];

/// The table with this behaviour.
#[must_use]
pub fn table(sink: Sink) -> &'static str {
    TABLES[sink as usize]
}

/// An engine that plays the scripts under the names of [`sql`], and has all [`TABLES`]. It counts the batches of
/// [`UNPAID`].
#[must_use]
pub fn engine(scripts: &[Script], unpaid: Arc<AtomicU64>) -> ScriptedEngine {
    let indexed = scripts.iter().enumerate();
    let endless = scripted::Script::synthetic(u64::MAX, 50);
    let unpaid = scripted::Script::new(synthetic_schema()).generate(u64::MAX, move |number| {
        unpaid.fetch_add(1, Ordering::Relaxed);
        synthetic_batch(number, 50)
    });
    let error = EngineError::Execution { message: "as scripted".to_owned() };
    let engine = ScriptedEngine::new()
        .with_query(ENDLESS, endless)
        .with_query(UNPAID, unpaid)
        .with_query(LARGE, scripted::Script::synthetic(u64::MAX, LARGE_ROWS))
        .with_sink(table(Sink::Takes), SinkScript::new())
        .with_sink(table(Sink::IsSlow), SinkScript::new().pace(Duration::from_millis(20)))
        .with_sink(table(Sink::Fails), SinkScript::new().fail_at(1, error.clone()))
        .with_sink(table(Sink::Refuses), SinkScript::new().refuse(error));
    indexed.fold(engine, |engine, (index, script)| {
        let engine = engine.with_query(sql(index), script.play());
        PARTITIONS.iter().fold(engine, |engine, &count| {
            engine.with_partitioned_query(sql_of_parts(index, count), Vec::new(), script.play_parts(count))
        })
    })
}

/// Numbers of partitions that the engine offers for each script.
pub const PARTITIONS: [usize; 2] = [2, 3];

/// The query that plays a script in partitions.
#[must_use]
pub fn sql_of_parts(index: usize, count: usize) -> String {
    format!("q{index} in {count}")
}

/// The query that plays a script.
#[must_use]
pub fn sql(index: usize) -> String {
    format!("q{index}")
}
