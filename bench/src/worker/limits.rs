//! Limits of the machine: copies of warm memory, and raw reads through UCX.

use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use thallus_fabric::memory::{PoolLimits, Slab, SlabPool};
use thallus_fabric::{Endpoint, Fabric, FabricError, ReadToken};
use thallus_protocol::{RegionId, RemoteRange};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{Connection, Outcome};
use crate::hex;
use crate::serve::REGION;
use crate::wire::Request;
use crate::wiring;

/// Bytes copied or read at a time: a batch of the size ladder.
const PIECE: usize = 1 << 20;
/// Size of the destination, which is filled repeatedly: the default limit of bytes on loan to a client of Thallus.
const TARGET: usize = 64 << 20;
/// Number of pieces read at the same time.
const AHEAD: usize = 8;

/// A copy between two warm buffers.
pub(super) struct Memcpy {
    source: Vec<u8>,
    target: Mutex<Vec<u8>>,
}

impl Memcpy {
    pub(super) fn new() -> Self {
        let source = (0..REGION).map(|i| (i.wrapping_mul(31) >> 3) as u8).collect();
        Memcpy { source, target: Mutex::new(vec![1; TARGET]) }
    }
}

#[async_trait]
impl Connection for Memcpy {
    async fn run(&self, request: &Request) -> Result<Outcome, String> {
        let bytes = usize::try_from(request.bytes).map_err(|e| e.to_string())?;
        let mut target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < bytes {
            let len = PIECE.min(bytes - done);
            let (from, to) = (done % REGION, done % TARGET);
            target[to..to + len].copy_from_slice(&self.source[from..from + len]);
            std::hint::black_box(&mut target[to]);
            done += len;
        }
        Ok(Outcome { batches: bytes.div_ceil(PIECE) as u64, ..Outcome::default() })
    }
}

/// Reads through the fabric, into memory that is reused for each piece.
pub(super) struct UcxGet {
    end: tokio::sync::Mutex<Box<dyn Endpoint>>,
    base: u64,
    most: usize,
    slab: Slab,
    /// Ends the lender's connection when it is dropped.
    _lender: TcpStream,
}

impl UcxGet {
    pub(super) async fn connect(port: u16) -> Result<Self, String> {
        let fail = |e: FabricError| e.to_string();
        let fabric = wiring::fabric()?;
        let mut end = fabric.endpoint().map_err(fail)?;
        let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.map_err(|e| e.to_string())?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [address, base, key] = words[..] else { return Err("unexpected line from the lender".into()) };
        let base = base.parse().map_err(|_| "the lender's base is no number")?;
        end.connect(&hex::decode(address)?).map_err(fail)?;
        end.import(RegionId(1), base, REGION as u64, &hex::decode(key)?).map_err(fail)?;
        let mut stream = stream.into_inner();
        stream.write_all(format!("{}\n", hex::encode(&end.address())).as_bytes()).await.map_err(|e| e.to_string())?;
        let most = usize::try_from(fabric.capabilities().max_read).unwrap_or(usize::MAX).min(PIECE);
        let slab = SlabPool::new(fabric, PoolLimits::default()).take(TARGET).map_err(fail)?;
        Ok(UcxGet { end: tokio::sync::Mutex::new(end), base, most, slab, _lender: stream })
    }

    async fn read(&self, bytes: usize) -> Result<u64, FabricError> {
        let mut end = self.end.lock().await;
        let mut completions = Vec::new();
        let (mut posted, mut reads, mut outstanding) = (0, 0, 0);
        while posted < bytes || outstanding > 0 {
            while posted < bytes && outstanding < AHEAD {
                let len = self.most.min(bytes - posted);
                let from =
                    RemoteRange { region: RegionId(1), address: self.base + (posted % REGION) as u64, len: len as u64 };
                end.post_read(ReadToken(reads), from, self.slab.range(posted % TARGET, len)?)?;
                (posted, reads, outstanding) = (posted + len, reads + 1, outstanding + 1);
            }
            poll_fn(|cx| end.poll(cx, &mut completions)).await?;
            outstanding -= completions.len();
            for completion in completions.drain(..) {
                completion.result.map_err(|_| FabricError::Misuse("a raw read failed"))?;
            }
        }
        Ok(reads)
    }
}

#[async_trait]
impl Connection for UcxGet {
    async fn run(&self, request: &Request) -> Result<Outcome, String> {
        let bytes = usize::try_from(request.bytes).map_err(|e| e.to_string())?;
        let batches = self.read(bytes).await.map_err(|e| e.to_string())?;
        Ok(Outcome { batches, ..Outcome::default() })
    }
}
