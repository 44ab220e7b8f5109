//! A client with a server that sends arbitrary messages, from the first message on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thallus_fuzz::client::Client;
use thallus_fuzz::frames::{Step, preface, steps};

fuzz_target!(|input: &[u8]| {
    let mut client = Client::default();
    client.step(Step::Bytes(preface().to_vec()));
    steps(input).for_each(|step| client.step(step));
    client.finish();
});
