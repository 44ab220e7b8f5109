//! Memory of the fabric, lent as a whole: the lender for the measurement of raw reads.

use std::future::poll_fn;

use thallus_fabric::memory::{PoolLimits, SlabPool};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::hex;
use crate::wiring;

/// Bytes lent: the size of the table of the size ladder.
pub const REGION: usize = 256 << 20;
const FILL: usize = 1 << 20;

pub(super) async fn serve(listener: TcpListener) -> Result<(), String> {
    loop {
        let (stream, _) = listener.accept().await.map_err(|e| e.to_string())?;
        tokio::spawn(async move {
            if let Err(error) = lend(stream).await {
                eprintln!("raw lender: {error}");
            }
        });
    }
}

/// Exchanges one line in each direction: `ADDRESS BASE KEY`, and the reader's address. Then lends until the reader is
/// gone.
async fn lend(mut stream: TcpStream) -> Result<(), String> {
    let fabric = wiring::fabric()?;
    let fail = |e: thallus_fabric::FabricError| e.to_string();
    let mut end = fabric.endpoint().map_err(fail)?;
    let limits = PoolLimits { max_bytes: 2 * REGION, ..PoolLimits::default() };
    let mut slab = SlabPool::new(fabric, limits).take(REGION).map_err(fail)?;
    let pattern: Vec<u8> = (0..FILL).map(|i| (i.wrapping_mul(31) >> 3) as u8).collect();
    for at in (0..REGION).step_by(FILL) {
        slab.copy_in(at, &pattern).map_err(fail)?;
    }
    let key = end.expose(slab.memory(), 0..slab.memory().len()).map_err(fail)?;
    let base = slab.memory().address() + slab.offset() as u64;
    let line = format!("{} {base} {}\n", hex::encode(&end.address()), hex::encode(&key));
    stream.write_all(line.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut lines = BufReader::new(stream).lines();
    let peer = lines.next_line().await.map_err(|e| e.to_string())?.ok_or("the reader has gone")?;
    end.connect(&hex::decode(&peer)?).map_err(fail)?;
    let mut completions = Vec::new();
    loop {
        tokio::select! {
            polled = poll_fn(|cx| end.poll(cx, &mut completions)) => polled.map_err(fail)?,
            _ = lines.next_line() => break,
        }
    }
    end.close();
    while !end.is_closed() {
        let _ = poll_fn(|cx| end.poll(cx, &mut completions)).await;
    }
    Ok(())
}
