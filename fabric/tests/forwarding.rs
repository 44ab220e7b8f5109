//! Each wrapper forwards each method of the fabric and of the endpoint that it wraps.
//!
//! A wrapper without a method would silently use the trait's default. So no method of these traits has a default, and
//! this test reads the traits' source: it fails if a method gets a default, or if a new method is not called here.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use thallus_fabric::count::CountedFabric;
use thallus_fabric::fault::{FaultInjector, FaultPlan};
use thallus_fabric::memory::{
    FileMapping, FilePiece, LocalRange, PAGE, PoolLimits, RegisteredMemory, Registration, SlabPool, TrustedPeer,
};
use thallus_fabric::trace::Tracer;
use thallus_fabric::{
    Buffer, Bytes, Capabilities, Completion, Endpoint, Fabric, FabricError, FabricKind, Fencing, Maps, MapsPeer,
    PresenceProbe, ReadToken, RegionId, RemoteRange, Touch, Transport,
};

/// The names of the methods that were called.
type Calls = Arc<Mutex<BTreeSet<&'static str>>>;

/// Records its calls, and those of its endpoints.
#[derive(Clone, Debug, Default)]
struct Recorder(Calls);

#[derive(Debug)]
struct OfTheRecorder;

impl Recorder {
    fn record(&self, method: &'static str) {
        self.0.lock().unwrap().insert(method);
    }
}

fn memory(len: usize) -> Result<Arc<RegisteredMemory>, FabricError> {
    let memory = RegisteredMemory::heap(len, |_, _| Ok(Box::new(OfTheRecorder) as Box<dyn Registration>));
    memory.expect("there is memory").map(Arc::new)
}

impl Fabric for Recorder {
    fn kind(&self) -> FabricKind {
        self.record("kind");
        FabricKind::new("recorder")
    }

    fn capabilities(&self) -> Capabilities {
        self.record("capabilities");
        Capabilities {
            fencing: Fencing::LeaseWord,
            max_read: 123,
            max_outstanding_reads: 45,
            exposes_ranges: true,
            registers_when_exposed: true,
            maps: Maps::Allocated,
        }
    }

    fn allocate(&self, len: usize, touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        // The argument `touch` is forwarded too.
        self.record(if touch == Touch::Now { "allocate" } else { "allocate to be touched when used" });
        memory(len)
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.record("register");
        Ok(Arc::new(RegisteredMemory::foreign(buffer, Box::new(OfTheRecorder))))
    }

    fn adopt(&self, _piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.record("adopt");
        Err(FabricError::Misuse("the recorder adopts nothing"))
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        self.record("endpoint");
        Ok(Box::new(self.clone()))
    }
}

impl Endpoint for Recorder {
    fn address(&self) -> Bytes {
        self.record("address");
        Bytes::from_static(b"an address")
    }

    fn connect(&mut self, peer: &[u8]) -> Result<(), FabricError> {
        assert_eq!(peer, b"a peer");
        self.record("connect");
        Ok(())
    }

    fn transport(&self) -> Option<Transport> {
        self.record("transport");
        Some(Transport { name: "a recorder".to_owned(), inferior: None })
    }

    fn expose(&mut self, _memory: &Arc<RegisteredMemory>, range: Range<usize>) -> Result<Bytes, FabricError> {
        assert_eq!(range, 3..5);
        self.record("expose");
        Ok(Bytes::from_static(b"a key"))
    }

    fn revoke(&mut self, key: &Bytes) {
        assert_eq!(&**key, b"a key");
        self.record("revoke");
    }

    fn import(&mut self, region: RegionId, base: u64, len: u64, key: &[u8]) -> Result<(), FabricError> {
        assert_eq!((region, base, len, key), (RegionId(1), 4096, 2, b"a key".as_slice()));
        self.record("import");
        Ok(())
    }

    fn forget(&mut self, region: RegionId) {
        assert_eq!(region, RegionId(1));
        self.record("forget");
    }

    fn post_read(&mut self, token: ReadToken, from: RemoteRange, into: LocalRange) -> Result<(), FabricError> {
        assert_eq!((token, from, into.len()), (ReadToken(9), PLACE, 2));
        self.record("post_read");
        Ok(())
    }

    fn lends_from(&self) -> Option<Arc<dyn Fabric>> {
        self.record("lends_from");
        None
    }

    fn peer_presence(&self) -> Option<PresenceProbe> {
        self.record("peer_presence");
        None
    }

    fn mapping(&mut self) -> Option<&mut dyn MapsPeer> {
        self.record("mapping");
        Some(self)
    }

    fn poll(&mut self, _cx: &mut Context<'_>, _completions: &mut Vec<Completion>) -> Poll<Result<(), FabricError>> {
        self.record("poll");
        Poll::Pending
    }

    fn close(&mut self) {
        self.record("close");
    }

    fn is_closed(&self) -> bool {
        self.record("is_closed");
        true
    }
}

impl MapsPeer for Recorder {
    fn map(&mut self, from: RemoteRange, _peer: TrustedPeer) -> Result<Buffer, FabricError> {
        assert_eq!(from, PLACE);
        self.record("map");
        Ok(Buffer::from(b"ab".as_slice()))
    }
}

const PLACE: RemoteRange = RemoteRange { region: RegionId(1), address: 4096, len: 2 };

/// Calls every method of both traits and of the extension.
fn call_all(fabric: &dyn Fabric) {
    assert_eq!(fabric.kind(), FabricKind::new("recorder"));
    assert_eq!(fabric.capabilities().max_read, 123);
    let memory = fabric.allocate(4096, Touch::Now).unwrap();
    fabric.allocate(4096, Touch::WhenUsed).unwrap();
    fabric.register(Buffer::from(b"a buffer".as_slice())).unwrap();
    let piece = FilePiece::of(Box::leak(Box::new(FileMapping::new(PAGE).unwrap())));
    fabric.adopt(piece).unwrap_err();
    let mut endpoint = fabric.endpoint().unwrap();
    assert_eq!(&*endpoint.address(), b"an address");
    endpoint.connect(b"a peer").unwrap();
    assert_eq!(endpoint.transport().unwrap().name, "a recorder");
    let key = endpoint.expose(&memory, 3..5).unwrap();
    endpoint.import(RegionId(1), 4096, 2, &key).unwrap();
    let pool = SlabPool::new(Arc::new(Recorder::default()), PoolLimits::default());
    let slab = pool.take(2).unwrap();
    endpoint.post_read(ReadToken(9), PLACE, slab.range(0, 2).unwrap()).unwrap();
    assert!(endpoint.lends_from().is_none() && endpoint.peer_presence().is_none());
    let mapping = endpoint.mapping().expect("a wrapper hides the mapping");
    assert_eq!(mapping.map(PLACE, TrustedPeer::assume()).unwrap().as_slice(), b"ab");
    assert!(endpoint.poll(&mut Context::from_waker(Waker::noop()), &mut Vec::new()).is_pending());
    endpoint.forget(RegionId(1));
    endpoint.revoke(&key);
    endpoint.close();
    endpoint.is_closed();
}

/// The names of a trait's methods in its source.
fn methods(source: &'static str, name: &str) -> BTreeSet<&'static str> {
    let start = source.find(&format!("pub trait {name}")).expect("the trait");
    let body = &source[start..];
    let body = &body[..body.find("\n}\n").expect("its end")];
    let mut found = BTreeSet::new();
    for method in body.split("    fn ").skip(1) {
        let name = method.split(['(', '<']).next().expect("a name");
        let signature = &method[..method.find([';', '{']).expect("the end of a signature") + 1];
        assert!(signature.ends_with(';'), "{name} has a default, which wrappers would not forward");
        found.insert(name);
    }
    found
}

#[test]
fn each_wrapper_forwards_each_method() {
    let traits = include_str!("../src/fabric.rs");
    let mut expected = methods(traits, "Fabric");
    expected.extend(methods(traits, "Endpoint"));
    expected.extend(methods(traits, "MapsPeer"));
    assert_eq!(expected.len(), 6 + 14 + 1, "{expected:?}");
    expected.insert("allocate to be touched when used");
    type Wrap = fn(Recorder) -> Box<dyn Fabric>;
    let wrappers: [(&str, Wrap); 5] = [
        ("nothing", |recorder| Box::new(recorder)),
        ("an Arc", |recorder| Box::new(Arc::new(recorder))),
        ("a tracer", |recorder| Box::new(Tracer::new(recorder, 10))),
        ("a counter", |recorder| Box::new(CountedFabric::new(recorder))),
        ("a fault injector", |recorder| Box::new(FaultInjector::new(recorder, FaultPlan::new(1)))),
    ];
    for (name, wrap) in wrappers {
        let recorder = Recorder::default();
        call_all(&*wrap(recorder.clone()));
        assert_eq!(*recorder.0.lock().unwrap(), expected, "{name}");
    }
}

#[test]
#[should_panic(expected = "map_all has a default")]
fn a_default_is_found() {
    methods("pub trait Maps {\n    fn map(&self);\n\n    fn map_all(&self) -> u8 {\n        0\n    }\n}\n", "Maps");
}
