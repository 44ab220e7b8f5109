//! Peers that mean no good.

use std::sync::Arc;

use turmoil::Sim;

use crate::world::Shared;

/// Adds those that the options ask for.
pub fn add(_sim: &mut Sim<'static>, _shared: &Arc<Shared>) {}
