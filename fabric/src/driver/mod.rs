//! What the drivers of both ends share: a clock for the machines, and the control connection as a queue of frames.
//!
//! The drivers themselves are in the server and client crates. They run on any byte stream and on tokio's time, so that
//! a simulation can put its own under them.

mod clock;
mod control;

pub use clock::Clock;
pub use control::{Control, ControlEvent, ControlIo};
