//! The fault injector, the tracer and the counter, around a simulated fabric: they keep the contract, and do their own
//! work.

use std::sync::Arc;
use std::time::Duration;

use arrow_buffer::Buffer;
use thallus_fabric::conformance::{Bench, Connection, Side, drive, run};
use thallus_fabric::count::{CountedFabric, thread_registrations};
use thallus_fabric::fault::{Call, FaultInjector, FaultPlan, ReadFault, When};
use thallus_fabric::memory::PAGE;
use thallus_fabric::trace::{TraceEvent, Tracer};
use thallus_fabric::{Fabric, FabricError, ReadFailure, ReadToken, Touch};
use thallus_fabric_sim::{SimFabric, SimNetwork, SimOptions};
use thallus_protocol::RegionId;

const REGION: RegionId = RegionId(1);

fn host(seed: u64) -> Arc<SimFabric> {
    SimNetwork::new(seed, SimOptions::default()).host()
}

fn faulty(plan: FaultPlan) -> Arc<dyn Fabric> {
    Arc::new(FaultInjector::new(host(1), plan))
}

mod a_tracer {
    use super::*;

    thallus_fabric::conformance_suite!(|| -> Arc<dyn Fabric> { Arc::new(Tracer::new(host(1), 100)) });
}

mod a_counter {
    use super::*;

    thallus_fabric::conformance_suite!(|| -> Arc<dyn Fabric> { Arc::new(CountedFabric::new(host(1))) });
}

#[test]
fn a_counter_counts_what_was_registered_by_all_and_by_this_thread() {
    let fabric = Arc::new(CountedFabric::new(host(1)));
    let before = thread_registrations();
    let allocated = fabric.allocate(5000, Touch::Now).unwrap();
    let registered = fabric.register(Buffer::from(vec![1_u8; 300])).unwrap();
    let elsewhere = Arc::clone(&fabric);
    std::thread::spawn(move || elsewhere.allocate(1, Touch::Now).unwrap()).join().unwrap();
    assert_eq!((fabric.registrations(), thread_registrations() - before), (3, 2));
    assert_eq!(fabric.bytes(), (allocated.len() + registered.len() + PAGE) as u64);
    drop((allocated, registered));
    assert_eq!(fabric.registrations(), 3, "dropped registrations count too");
}

mod an_injector_without_faults {
    use super::*;

    thallus_fabric::conformance_suite!(|| faulty(FaultPlan::new(1)));
}

/// Simulated shared memory: lease words, keys for whole memory, and mapping.
fn shared_memory() -> Arc<SimFabric> {
    SimNetwork::new(2, SimOptions::shared_memory()).host()
}

mod a_tracer_of_shared_memory {
    use super::*;

    thallus_fabric::conformance_suite!(|| -> Arc<dyn Fabric> { Arc::new(Tracer::new(shared_memory(), 100)) });
}

mod an_injector_without_faults_into_shared_memory {
    use super::*;

    thallus_fabric::conformance_suite!(|| -> Arc<dyn Fabric> {
        Arc::new(FaultInjector::new(shared_memory(), FaultPlan::new(1)))
    });
}

mod a_tracer_of_a_counter_of_an_injector {
    use super::*;

    thallus_fabric::conformance_suite!(|| -> Arc<dyn Fabric> {
        let injector = FaultInjector::new(shared_memory(), FaultPlan::new(1));
        Arc::new(Tracer::new(CountedFabric::new(injector), 100))
    });
}

mod an_injector_of_delays {
    use super::*;

    // Late completions break no rule.
    thallus_fabric::conformance_suite!(|| faulty(
        FaultPlan::new(1).read(When::OneIn(2), ReadFault::Delay { polls: 5 })
    ));
}

/// Runs `test` with a connection over `fabric`, 100 bytes lent at the returned address, and a slab of 100 bytes.
fn with_connection<F>(fabric: Arc<dyn Fabric>, test: impl AsyncFnOnce(&Bench, Connection, u64) -> F) -> F {
    let bench = Bench::new("faults", Arc::clone(&fabric), fabric);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut connection = bench.connect();
        let lent = bench.lend(&[7; 100]);
        connection.share(REGION, lent.memory());
        test(&bench, connection, lent.address()).await
    })
}

#[test]
fn a_failed_read_says_so_and_the_next_succeeds() {
    let plan = FaultPlan::new(1).read(When::Nth(1), ReadFault::Fail(ReadFailure::RetryExceeded));
    with_connection(faulty(plan), async |bench, mut connection, address| {
        assert!(connection.read(bench, REGION, address, 100).await.is_ok());
        assert_eq!(connection.read(bench, REGION, address, 100).await, Err(ReadFailure::RetryExceeded));
        assert!(connection.read(bench, REGION, address, 100).await.is_ok());
        connection.close().await;
    });
}

#[test]
fn a_delayed_read_keeps_its_memory_and_brings_its_bytes() {
    let plan = FaultPlan::new(1).read(When::Always, ReadFault::Delay { polls: 1000 });
    with_connection(faulty(plan), async |bench, mut connection, address| {
        let slab = bench.slab(100);
        connection.post(1, REGION, address, slab.range(0, 100).unwrap()).unwrap();
        let mut polls = 0;
        let some = |_: &mut [&mut Side]| {
            polls += 1;
            polls > 100
        };
        assert!(drive(&mut [&mut connection.borrower], some).await);
        // The simulated read has ended, but its completion has not been polled.
        assert_eq!(connection.borrower.result(1), None);
        let slab = slab.into_buffer().expect_err("the read is outstanding");
        assert!(matches!(
            connection.post(1, REGION, address, bench.slab(1).range(0, 1).unwrap()),
            Err(FabricError::Misuse(_))
        ));
        assert_eq!(connection.finish([1]).await, [Ok(())]);
        assert_eq!(slab.into_buffer().unwrap().as_slice(), [7; 100]);
        connection.close().await;
    });
}

#[test]
fn a_hanging_read_is_flushed_by_the_close() {
    let plan = FaultPlan::new(1).read(When::Nth(0), ReadFault::Hang);
    with_connection(faulty(plan), async |bench, mut connection, address| {
        let slab = bench.slab(100);
        connection.post(1, REGION, address, slab.range(0, 100).unwrap()).unwrap();
        assert!(connection.read(bench, REGION, address, 100).await.is_ok());
        assert_eq!(connection.borrower.result(1), None);
        let slab = slab.into_buffer().unwrap_err();
        connection.borrower.close();
        assert!(!connection.borrower.endpoint.is_closed());
        assert_eq!(connection.finish([1]).await, [Err(ReadFailure::Flushed)]);
        assert!(connection.borrower.endpoint.is_closed());
        assert!(slab.into_buffer().is_ok());
        connection.close().await;
    });
}

#[test]
fn hanging_reads_count_as_outstanding() {
    let plan = FaultPlan::new(1).read(When::Always, ReadFault::Hang);
    with_connection(faulty(plan), async |bench, mut connection, address| {
        let slab = bench.slab(100);
        let limit = SimOptions::default().max_outstanding_reads;
        for token in 0..limit {
            connection.post(token as u64, REGION, address, slab.range(token, 1).unwrap()).unwrap();
            let mut side = [&mut connection.borrower];
            let nothing_comes = tokio::time::timeout(Duration::from_millis(5), drive(&mut side, |_| false)).await;
            assert!(nothing_comes.is_err());
        }
        let refused = connection.post(99, REGION, address, slab.range(99, 1).unwrap());
        assert_eq!(refused, Err(FabricError::TooManyReads { limit }));
        assert!(connection.borrower.done.is_empty());
        connection.close().await;
    });
}

#[test]
fn an_endpoint_dies_with_its_reads() {
    with_connection(faulty(FaultPlan::new(1).endpoints_die_after(3)), async |bench, mut connection, address| {
        let slab = bench.slab(100);
        assert!(connection.read(bench, REGION, address, 100).await.is_ok());
        for token in [1, 2] {
            connection.post(token, REGION, address, slab.range(token as usize, 1).unwrap()).unwrap();
        }
        for result in connection.finish([1, 2]).await {
            assert!(matches!(result, Err(ReadFailure::PeerGone(_))), "{result:?}");
        }
        assert!(drive(&mut [&mut connection.borrower], |sides| sides[0].failed.is_some()).await);
        assert!(matches!(connection.borrower.failed, Some(FabricError::EndpointDown { .. })));
        let refused = connection.post(3, REGION, address, slab.range(0, 1).unwrap());
        assert!(matches!(refused, Err(FabricError::EndpointDown { .. })));
        connection.close().await;
    });
}

#[test]
fn each_call_fails_in_its_own_way_and_only_when_told() {
    let nth = |call| faulty(FaultPlan::new(1).call(call, When::Nth(0)));
    assert!(matches!(nth(Call::Allocate).allocate(1, Touch::Now), Err(FabricError::OutOfMemory { .. })));
    assert!(matches!(nth(Call::Register).register(vec![1_u8].into()), Err(FabricError::Registration { .. })));
    let fabric = nth(Call::Endpoint);
    assert!(matches!(fabric.endpoint(), Err(FabricError::Unavailable { .. })));
    assert!(fabric.endpoint().is_ok(), "only the first endpoint fails");

    let fabric = nth(Call::Connect);
    let (mut one, two) = (fabric.endpoint().unwrap(), fabric.endpoint().unwrap());
    assert!(matches!(one.connect(&two.address()), Err(FabricError::Connect { .. })));
    one.connect(&two.address()).unwrap();

    let fabric = nth(Call::Expose);
    let memory = fabric.allocate(1, Touch::Now).unwrap();
    assert!(matches!(fabric.endpoint().unwrap().expose(&memory, 0..1), Err(FabricError::Registration { .. })));

    let fabric = nth(Call::Import);
    let memory = fabric.allocate(1, Touch::Now).unwrap();
    let mut endpoint = fabric.endpoint().unwrap();
    let key = endpoint.expose(&memory, 0..1).unwrap();
    assert!(matches!(endpoint.import(REGION, memory.address(), 1, &key), Err(FabricError::RemoteKey { .. })));
    endpoint.import(REGION, memory.address(), 1, &key).unwrap();

    with_connection(nth(Call::Post), async |bench, mut connection, address| {
        let slab = bench.slab(1);
        let refused = connection.post(1, REGION, address, slab.range(0, 1).unwrap());
        assert!(matches!(refused, Err(FabricError::Post { .. })));
        connection.post(1, REGION, address, slab.range(0, 1).unwrap()).unwrap();
        assert_eq!(connection.finish([1]).await, [Ok(())]);
        connection.close().await;
    });
}

#[test]
fn a_plan_is_the_same_for_the_same_seed() {
    let outcome = |seed| {
        let plan = FaultPlan::new(seed).read(When::OneIn(3), ReadFault::Fail(ReadFailure::RemoteAccess));
        with_connection(faulty(plan), async |bench, mut connection, address| {
            let mut failed = Vec::new();
            for _ in 0..50 {
                failed.push(connection.read(bench, REGION, address, 100).await.is_err());
            }
            connection.close().await;
            failed
        })
    };
    assert_eq!(outcome(1), outcome(1));
    assert_ne!(outcome(1), outcome(2));
    let failures = outcome(1).into_iter().filter(|&failed| failed).count();
    assert!((5..30).contains(&failures), "{failures} of 50 failed");
}

#[test]
fn a_trace_records_all_calls_of_a_connection() {
    let traced = Arc::new(Tracer::new(host(1), 1000));
    let fabric: Arc<dyn Fabric> = traced.clone();
    with_connection(fabric, async |bench, mut connection, address| {
        let slab = bench.slab(100);
        connection.post(5, REGION, address, slab.range(0, 100).unwrap()).unwrap();
        assert!(connection.post(6, REGION, 0, slab.range(0, 0).unwrap()).is_err());
        connection.finish([5]).await;
        connection.close().await;
    });
    let story: Vec<_> = traced
        .events()
        .into_iter()
        .map(|event| match event {
            TraceEvent::Allocated(..) => "allocated",
            TraceEvent::Opened(Ok(_)) => "opened",
            TraceEvent::Connected(_, Ok(())) => "connected",
            TraceEvent::Exposed(_, _, _, Ok(_)) => "exposed",
            TraceEvent::Imported(_, REGION, Ok(())) => "imported",
            TraceEvent::Posted(_, ReadToken(5), _, Ok(())) => "posted",
            TraceEvent::Posted(_, ReadToken(6), _, Err(FabricError::OutsideRegion { .. })) => "refused",
            TraceEvent::Completed(_, ReadToken(5), Ok(())) => "completed",
            TraceEvent::Closing(_) => "closing",
            TraceEvent::Dropped(_, true) => "dropped",
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        "opened",
        "opened",
        "connected",
        "connected",
        "allocated",
        "exposed",
        "imported",
        "allocated",
        "posted",
        "refused",
        "completed",
        "closing",
        "closing",
        "dropped",
        "dropped",
    ];
    assert_eq!(story, expected);
    assert_eq!(traced.lost(), 0);
}

#[test]
fn a_trace_is_bounded() {
    for capacity in [0, 3] {
        let traced = Tracer::new(host(1), capacity);
        for len in 1..=10 {
            traced.allocate(len, Touch::Now).unwrap();
        }
        assert_eq!(traced.lost(), 10 - capacity as u64);
        let lens: Vec<_> = traced
            .events()
            .iter()
            .map(|event| matches!(event, TraceEvent::Allocated(8..=10, Touch::Now, Ok(_))))
            .collect();
        assert_eq!(lens, vec![true; capacity]);
    }
}

/// A fabric that fails its reads fails the suite.
#[test]
fn the_suite_sees_failing_reads() {
    use thallus_fabric::conformance::cases;
    let plan = FaultPlan::new(1).read(When::Nth(3), ReadFault::Fail(ReadFailure::RemoteAccess));
    let suite = [
        cases::a_read_of_every_size_brings_its_bytes,
        cases::a_read_at_any_offset_brings_its_bytes_and_no_others,
        cases::many_reads_complete_each_once,
        cases::reads_of_a_forgotten_region_complete,
    ];
    for case in suite {
        let plan = plan.clone();
        let run = || run("a test of the suite", case, || faulty(plan.clone()));
        assert!(std::panic::catch_unwind(run).is_err());
    }
}
