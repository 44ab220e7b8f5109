//! A dictionary that several batches of a result share is lent only with the first of them, if each batch is read in
//! full.

use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, DictionaryArray, RecordBatch, StringArray};
use futures::{StreamExt, TryStreamExt};
use thallus_client::{Access, Client, LendFrom, QueryOptions, TransferReport};
use thallus_fabric::Fencing;
use thallus_scripted_engine::{Script, ScriptedEngine};

use crate::world::{World, block_on, within};

const ROWS: usize = 30_000;
/// Size of the keys of a batch, in bytes.
const KEYS: u64 = ROWS as u64 * 4;

/// A dictionary of about 140 KB.
fn words(prefix: &str) -> ArrayRef {
    Arc::new(StringArray::from_iter_values((0..10_000).map(|i| format!("{prefix}{i:09}"))))
}

fn size(words: &ArrayRef) -> u64 {
    words.to_data().get_slice_memory_size().unwrap() as u64
}

fn batch(words: &ArrayRef, number: usize) -> RecordBatch {
    let keys = (0..ROWS).map(|row| ((row * 7 + number) % words.len()) as i32);
    let column = DictionaryArray::<Int32Type>::new(keys.collect::<Vec<_>>().into(), words.clone());
    RecordBatch::try_from_iter([("word", Arc::new(column) as ArrayRef)]).unwrap()
}

/// Batches with one dictionary, then with another, then with the first again; and the size of one dictionary, in bytes.
fn batches() -> (Vec<RecordBatch>, u64) {
    let (a, b) = (words("a"), words("b"));
    let each = [&a, &a, &a, &a, &b, &b, &a];
    (each.iter().enumerate().map(|(number, words)| batch(words, number)).collect(), size(&a))
}

fn world(fencing: Fencing) -> World {
    World::over(ScriptedEngine::new().on("q", Script::batches(batches().0)), Some(fencing))
}

async fn run(client: Client, options: QueryOptions) -> TransferReport {
    let mut result = client.query_with("q", options).await.unwrap();
    let got: Vec<_> = within("the batches", result.by_ref().try_collect()).await.unwrap();
    assert_eq!(got, batches().0);
    result.report()
}

#[test]
fn batches_that_share_a_dictionary_move_it_once() {
    for fencing in [Fencing::LeaseWord, Fencing::Revocation] {
        block_on(async {
            let world = world(fencing);
            let report = run(world.client().await, QueryOptions::default().with_lend_from(LendFrom::Bytes(0))).await;
            assert_eq!((report.batches_lent, report.batches_inline), (7, 0), "{report}");
            let words = batches().1;
            assert!((7 * KEYS + 3 * words..7 * KEYS + 3 * words + 1000).contains(&report.bytes_lent), "{report}");
            world.is_at_rest().await;
        });
    }
}

/// An inline batch contains its dictionary, and does not change the kept dictionaries of lent batches.
#[test]
fn inline_batches_leave_the_lent_dictionaries_unchanged() {
    block_on(async {
        let (a, b) = (words("a"), words("b"));
        let sent = vec![
            batch(&a, 0),
            batch(&b, 1).slice(5, 10),
            batch(&b, 2),
            batch(&b, 3),
            batch(&a, 4).slice(0, 9),
            batch(&b, 5),
        ];
        let engine = ScriptedEngine::new().on("mixed", Script::batches(sent.clone()));
        let world = World::over(engine, Some(Fencing::LeaseWord));
        let words = size(&a);
        let client = world.client_with(|options| options.with_lend_from(LendFrom::Bytes(words + 1000))).await;
        let mut result = client.query("mixed").await.unwrap();
        let got: Vec<_> = within("the batches", result.by_ref().try_collect()).await.unwrap();
        assert_eq!(got, sent);
        let report = result.report();
        assert_eq!((report.batches_lent, report.batches_inline), (4, 2), "{report}");
        assert!((4 * KEYS + 2 * words..4 * KEYS + 2 * words + 1000).contains(&report.bytes_lent), "{report}");
        drop((got, result, client));
        world.is_at_rest().await;
    });
}

/// Without its dictionary the batch is small. The server lends it nevertheless, because an inline batch contains its
/// dictionary.
#[test]
fn a_batch_whose_dictionary_is_kept_is_still_lent() {
    block_on(async {
        let world = world(Fencing::LeaseWord);
        let client = world.client_with(|options| options.with_lend_from(LendFrom::Bytes(KEYS + 1))).await;
        let report = run(client, QueryOptions::default()).await;
        assert_eq!((report.batches_lent, report.batches_inline), (7, 0), "{report}");
        world.is_at_rest().await;
    });
}

/// Batches that are read in parts, in any order, contain their dictionaries.
#[test]
fn lazy_batches_are_complete() {
    block_on(async {
        let world = world(Fencing::LeaseWord);
        let client = world.client().await;
        let mut result = client.query_lazy("q").await.unwrap();
        let mut held = Vec::new();
        while let Some(batch) = within("a batch", result.next()).await {
            held.push(batch.unwrap());
        }
        let expected = batches().0;
        assert_eq!(held.len(), expected.len());
        for (batch, expected) in held.iter().zip(&expected).rev() {
            assert_eq!(batch.columns_in(&[0], 10..20).await.unwrap(), expected.slice(10, 10));
        }
        drop((held, result, client));
        world.is_at_rest().await;
    });
}

#[test]
fn mapped_batches_are_complete() {
    block_on(async {
        let engine = ScriptedEngine::new().on("q", Script::batches(batches().0));
        let world = World::mapping(engine, |_| {});
        let report = run(world.client().await, QueryOptions::default().with_access(Access::Map)).await;
        assert_eq!(report.batches_mapped, 7, "{report}");
        world.is_at_rest().await;
    });
}
