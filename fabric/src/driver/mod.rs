//! What the drivers of both ends share: a clock for the machines, the control connection as a queue of frames, and a
//! bell for each source that is not worth polling whenever another has something.
//!
//! The drivers themselves are in the server and client crates. They run on any byte stream and on tokio's time, so that
//! a simulation can put its own under them.

mod clock;
mod control;
mod doorbell;

pub use clock::Clock;
pub use control::{Control, ControlEvent, ControlIo};
pub use doorbell::Doorbell;
