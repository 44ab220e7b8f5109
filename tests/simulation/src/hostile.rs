//! Peers that mean no good: a client that breaks every rule, and a server that lies to a client of ours.

mod client;
mod server;

use std::sync::Arc;

use turmoil::Sim;

pub use server::LIARS_LEASE;

use crate::world::Shared;

/// What hostile clients do and what hostile servers say.
pub fn names() -> (Vec<String>, Vec<String>) {
    let acts = client::ACTS.iter().map(|act| format!("{act:?}")).collect();
    (acts, server::LIES.iter().map(|lie| format!("{lie:?}")).collect())
}

/// Adds those that the options ask for.
pub fn add(sim: &mut Sim<'static>, shared: &Arc<Shared>) {
    let (client, server) = shared.options.hostile;
    if client {
        let shared = Arc::clone(shared);
        sim.host("mallory", move || client::run(Arc::clone(&shared)));
    }
    // Its victim asks for a result.
    if server && !shared.options.uploads_only() {
        let of_liar = Arc::clone(shared);
        sim.host("liar", move || server::run(Arc::clone(&of_liar)));
        let of_victim = Arc::clone(shared);
        sim.host("victim", move || server::victim(Arc::clone(&of_victim)));
    }
}
