//! Hostile peers: a client that breaks every rule of the protocol, and a server that lies to an honest client.

mod client;
mod server;

use std::sync::Arc;

use turmoil::Sim;

pub use server::HOSTILE_LEASE;

use crate::shared::Shared;

/// Names of the hostile client's acts and of the hostile server's lies.
pub fn names() -> (Vec<String>, Vec<String>) {
    let acts = client::ACTS.iter().map(|act| format!("{act:?}")).collect();
    (acts, server::LIES.iter().map(|lie| format!("{lie:?}")).collect())
}

/// Adds the hostile peers that the options name.
pub fn add(sim: &mut Sim<'static>, shared: &Arc<Shared>) {
    let (client, server) = shared.options.hostile;
    if client {
        let shared = Arc::clone(shared);
        sim.host("mallory", move || client::run(Arc::clone(&shared)));
    }
    // The victim of the hostile server requests a result.
    if server && !shared.options.uploads_only() {
        let of_liar = Arc::clone(shared);
        sim.host("liar", move || server::run(Arc::clone(&of_liar)));
        let of_victim = Arc::clone(shared);
        sim.host("victim", move || server::victim(Arc::clone(&of_victim)));
    }
}
