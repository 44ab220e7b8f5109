//! Two endpoints in one process.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use thallus_fabric::memory::LocalRange;
use thallus_fabric::{Completion, Endpoint, Fabric, ReadToken};
use thallus_fabric_ucx::{UcxFabric, UcxOptions};
use thallus_protocol::{RegionId, RemoteRange};

async fn read_once(transports: Option<&str>) -> (Vec<Completion>, String) {
    let fabric = UcxFabric::new(UcxOptions { transports: transports.map(Into::into), ..Default::default() }).unwrap();
    let mut reader = fabric.endpoint().unwrap();
    let mut lender = fabric.endpoint().unwrap();
    reader.connect(&lender.address()).unwrap();
    lender.connect(&reader.address()).unwrap();
    println!("{:?} {:?}", reader.transport(), reader.address().len());
    let lent = fabric.allocate(4096).unwrap();
    // SAFETY: nobody reads it yet.
    unsafe { lent.start().write_bytes(9, 4096) };
    let key = lender.expose(&lent).unwrap();
    println!("key {}", key.len());
    reader.import(RegionId(1), lent.address(), 4096, &key).unwrap();
    let into = fabric.allocate(4096).unwrap();
    // SAFETY: only read after the completion.
    let range = unsafe { LocalRange::new(into.clone(), 0, 4096, None) };
    reader
        .post_read(ReadToken(5), RemoteRange { region: RegionId(1), address: lent.address(), len: 4096 }, range)
        .unwrap();
    let mut completions = Vec::new();
    let name = reader.transport().unwrap().name;
    tokio::time::timeout(
        Duration::from_secs(10),
        poll_fn(|cx| {
            let mut none = Vec::new();
            let _ = lender.poll(cx, &mut none);
            match reader.poll(cx, &mut completions) {
                Poll::Ready(Ok(())) => Poll::Ready(()),
                Poll::Ready(Err(e)) => panic!("{e}"),
                Poll::Pending => Poll::Pending,
            }
        }),
    )
    .await
    .expect("read within 10 s");
    // SAFETY: the read is done.
    assert_eq!(unsafe { into.start().add(4095).read() }, 9);
    for mut end in [reader, lender] {
        end.close();
        let mut none = Vec::new();
        tokio::time::timeout(
            Duration::from_secs(10),
            poll_fn(|cx| if end.is_closed() { Poll::Ready(()) } else { end.poll(cx, &mut none).map(|_| ()) }),
        )
        .await
        .expect("closed within 10 s");
        assert!(end.is_closed());
    }
    let _ = Arc::strong_count(&lent);
    (completions, name)
}

#[tokio::test]
async fn default_transports() {
    let (completions, name) = read_once(None).await;
    println!("{completions:?} {name}");
    assert_eq!(completions, [Completion { token: ReadToken(5), result: Ok(()) }]);
}

#[tokio::test]
async fn tcp() {
    let (completions, name) = read_once(Some("tcp")).await;
    println!("{completions:?} {name}");
    assert_eq!(completions, [Completion { token: ReadToken(5), result: Ok(()) }]);
}

#[tokio::test]
async fn shm() {
    let (completions, name) = read_once(Some("posix,self,cma")).await;
    println!("{completions:?} {name}");
    assert_eq!(completions, [Completion { token: ReadToken(5), result: Ok(()) }]);
}
