//! Both machines over the bare simulated network, against a model of one page: the requests, the cancellations, and
//! whether the connection was cut. Failing cases shrink.

mod pair;

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use thallus_fabric::Fencing;
use thallus_simulation::options::Streams;

use pair::Pair;

/// The expected outcome.
#[derive(Clone, Debug)]
pub struct Model {
    pub fencing: Fencing,
    pub seed: u64,
    /// Kinds of streams.
    pub streams_are: Streams,
    /// Rows of each stream's batches, by stream, counted from 1.
    pub streams: Vec<Vec<u64>>,
    pub cancelled: Vec<bool>,
    pub cut: bool,
}

/// One step of a test case.
#[derive(Clone, Debug)]
pub enum Step {
    Execute { rows: Vec<u64>, credit: u64, upload: bool },
    ToServer(usize),
    ToClient(usize),
    Source,
    Network,
    Take,
    Cancel(usize),
    Advance(u64),
    Cut,
}

impl ReferenceStateMachine for Model {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        let streams_are = STREAMS.get();
        (prop_oneof![Just(Fencing::Revocation), Just(Fencing::LeaseWord)], any::<u64>())
            .prop_map(move |(fencing, seed)| Model {
                fencing,
                seed,
                streams_are,
                streams: Vec::new(),
                cancelled: Vec::new(),
                cut: false,
            })
            .boxed()
    }

    fn transitions(model: &Model) -> BoxedStrategy<Step> {
        let rows = prop::collection::vec(1..200_u64, 0..5);
        let credit = prop_oneof![Just(300_u64), Just(2_000), Just(100_000)];
        let upload = match model.streams_are {
            Streams::All => any::<bool>().boxed(),
            Streams::Results => Just(false).boxed(),
            Streams::Uploads => Just(true).boxed(),
        };
        let execute = (rows, credit, upload).prop_map(|(rows, credit, upload)| Step::Execute { rows, credit, upload });
        let streams = model.streams.len().max(1);
        prop_oneof![
            2 => execute,
            4 => (1..5000_usize).prop_map(Step::ToServer),
            4 => (1..5000_usize).prop_map(Step::ToClient),
            4 => Just(Step::Source),
            6 => Just(Step::Network),
            3 => Just(Step::Take),
            1 => (0..streams).prop_map(Step::Cancel),
            1 => (1..400_u64).prop_map(Step::Advance),
            1 => Just(Step::Cut),
        ]
        .boxed()
    }

    fn preconditions(model: &Model, step: &Step) -> bool {
        match step {
            Step::Execute { .. } => model.streams.len() < 6,
            Step::Cancel(stream) => *stream < model.streams.len(),
            // Late, so that there are streams to cut.
            Step::Cut => !model.cut && model.streams.len() > 3,
            _ => true,
        }
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        match step {
            Step::Execute { rows, .. } => {
                model.streams.push(rows.clone());
                model.cancelled.push(false);
            }
            Step::Cancel(stream) => model.cancelled[*stream] = true,
            Step::Cut => model.cut = true,
            _ => {}
        }
        model
    }
}

thread_local! {
    static STREAMS: Cell<Streams> = const { Cell::new(Streams::All) };
}

struct Machines;

impl StateMachineTest for Machines {
    type SystemUnderTest = Pair;
    type Reference = Model;

    fn init_test(model: &Model) -> Pair {
        Pair::new(model.seed, model.fencing)
    }

    fn apply(mut pair: Pair, _: &Model, step: Step) -> Pair {
        match step {
            Step::Execute { rows, credit, upload } => pair.execute(rows, credit, upload),
            Step::ToServer(most) => drop(pair.server_receives(most)),
            Step::ToClient(most) => drop(pair.client_receives(most)),
            Step::Source => drop(pair.source()),
            Step::Network => drop(pair.network()),
            Step::Take => drop(pair.take()),
            Step::Cancel(stream) => pair.cancel(stream),
            Step::Advance(millis) => pair.advance(millis),
            Step::Cut => pair.cut(),
        }
        pair
    }

    fn check_invariants(pair: &Pair, model: &Model) {
        assert_eq!(pair.violations(), [], "only what is on loan is read");
        assert!(pair.bytes_on_loan() <= pair::MAX_LOAN, "bytes on loan <= limit");
        for (at, rows) in model.streams.iter().enumerate() {
            let got = pair.delivered(at);
            assert!(rows.starts_with(got), "stream {at}: {got:?} of {rows:?}");
        }
    }

    fn teardown(mut pair: Pair, model: Model) {
        pair.settle();
        Self::check_invariants(&pair, &model);
        for (at, rows) in model.streams.iter().enumerate() {
            let over = pair.over(at);
            assert!(over.is_some(), "stream {at} hangs");
            if over == Some(true) {
                assert_eq!(pair.delivered(at), rows, "stream {at} ended well");
            } else {
                assert!(model.cut || model.cancelled[at], "stream {at} failed without a cut or a cancellation");
            }
        }
        pair.close();
        assert_eq!(pair.open_leases(), 0, "every lease has ended");
        assert_eq!(pair.violations(), []);
    }
}

prop_state_machine! {
    #![proptest_config(Config { cases: 400, failure_persistence: None, ..Config::default() })]

    #[test]
    fn machines_do_as_the_model(sequential 1..120 => Machines);
}

/// A model test that finds nothing proves nothing.
#[cfg(feature = "planted-bugs")]
#[test]
fn the_model_finds_planted_bugs() {
    use std::panic::AssertUnwindSafe;

    use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
    use thallus_simulation::planted::plant;

    let config = Config { cases: 2000, failure_persistence: None, ..Config::default() };
    let found = |streams, bug| {
        STREAMS.set(streams);
        plant(bug);
        let mut runner = TestRunner::new_with_rng(config.clone(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| {
            runner.run(&Model::sequential_strategy(1..120), |(model, steps, seen)| {
                Machines::test_sequential(config.clone(), model, steps, seen);
                Ok(())
            })
        }));
        plant(None);
        STREAMS.set(Streams::All);
        !matches!(ran, Ok(Ok(())))
    };
    let bugs = [
        "lease-released-early",
        "batches-out-of-order",
        "end-too-soon",
        "torn-down-before-closed",
        "loan-limit-ignored",
    ];
    for streams in [Streams::Results, Streams::Uploads] {
        assert!(!found(streams, None), "{streams:?}: it finds what is not there");
        for bug in bugs {
            assert!(found(streams, Some(bug)), "{streams:?}: {bug} is not found");
        }
    }
}
