//! A server with a client that sends arbitrary messages, from the first message on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thallus_fuzz::frames::{Step, preface, steps};
use thallus_fuzz::server::Server;

fuzz_target!(|input: &[u8]| {
    let mut server = Server::default();
    server.step(Step::Bytes(preface().to_vec()));
    steps(input).for_each(|step| server.step(step));
    server.finish();
});
