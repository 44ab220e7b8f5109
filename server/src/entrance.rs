//! Connections before and after their hello. A connection without a hello costs its peer nothing, so such connections
//! must not take the places of clients: they have their own limit, and the oldest of them makes room for a new one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Why a connection without a hello was closed by this end before its time.
pub(crate) const DISPLACED: &str = "it sent no hello, and made room for a newer connection";
/// Least number of connections that may be without a hello, so that a server with a low limit of connections does not
/// drop a client while its hello is on its way.
const LEAST_WAITING: usize = 64;

#[derive(Debug, Default)]
struct Places {
    /// Connections without a hello, the oldest first.
    waiting: VecDeque<Arc<Notify>>,
    /// Connections that have sent their hello.
    admitted: usize,
}

/// The limits of connections.
#[derive(Debug)]
pub(crate) struct Entrance {
    limit: usize,
    places: Mutex<Places>,
}

impl Entrance {
    /// An entrance that admits at most `limit` connections at a time.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Entrance { limit, places: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a new connection wait for its hello. If too many wait, the oldest of them is displaced. With a refusal the
    /// connection gets no place, and its client this reason.
    pub(crate) fn enter(self: &Arc<Self>, refusal: Option<String>) -> Newcomer {
        let displaced = Arc::new(Notify::new());
        let mut places = self.lock();
        // A connection that is refused for lack of descriptors makes a silent one leave too.
        if (places.waiting.len() >= self.limit.max(LEAST_WAITING) || refusal.is_some())
            && let Some(oldest) = places.waiting.pop_front()
        {
            // Its task may not wait yet.
            oldest.notify_one();
        }
        places.waiting.push_back(Arc::clone(&displaced));
        Newcomer { entrance: Arc::clone(self), displaced, refusal }
    }
}

/// A connection without a hello.
#[derive(Debug)]
pub(crate) struct Newcomer {
    entrance: Arc<Entrance>,
    displaced: Arc<Notify>,
    refusal: Option<String>,
}

impl Newcomer {
    /// Is notified if the connection must make room for another one.
    pub(crate) fn displaced(&self) -> Arc<Notify> {
        Arc::clone(&self.displaced)
    }

    /// The reason why the connection gets no place, whatever it sends.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.refusal.clone()
    }

    /// Takes a place among the connections that have sent their hello.
    ///
    /// # Errors
    /// The reason, for the client, why there is none.
    pub(crate) fn take_place(&self) -> Result<Admitted, String> {
        let limit = self.entrance.limit;
        let mut places = self.entrance.lock();
        if places.admitted >= limit {
            return Err(format!(
                "the server serves {limit} connections at most (limits.max_connections); try again later"
            ));
        }
        places.admitted += 1;
        drop(places);
        Ok(Admitted(Arc::clone(&self.entrance)))
    }

    /// The hello has arrived: from now on the connection is not displaced, since it has state that must be ended in
    /// order. `false` if it has been displaced already.
    pub(crate) fn arrived(self) -> bool {
        let mut places = self.entrance.lock();
        let at = places.waiting.iter().position(|waiting| Arc::ptr_eq(waiting, &self.displaced));
        at.is_some_and(|at| places.waiting.remove(at).is_some())
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        self.entrance.lock().waiting.retain(|waiting| !Arc::ptr_eq(waiting, &self.displaced));
    }
}

/// The place of a connection that has sent its hello. Free again when dropped.
#[derive(Debug)]
pub(crate) struct Admitted(Arc<Entrance>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.lock().admitted -= 1;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn the_oldest_newcomer_makes_room_and_admitted_connections_stay() {
        let entrance = Entrance::new(2);
        let admitted: Vec<_> = (0..2).map(|_| entrance.enter(None).take_place().unwrap()).collect();
        let waiting: Vec<_> = (0..LEAST_WAITING).map(|_| entrance.enter(None)).collect();
        let is_displaced = |newcomer: &Newcomer| newcomer.displaced().notified().now_or_never().is_some();
        assert!(!waiting.iter().any(is_displaced));
        let late = entrance.enter(None);
        assert!(is_displaced(&waiting[0]) && !waiting[1..].iter().any(is_displaced) && !is_displaced(&late));
        let refused = late.take_place().unwrap_err();
        assert!(refused.contains("2 connections") && refused.contains("limits.max_connections"), "{refused}");
        drop(admitted);
        assert_eq!(entrance.enter(Some("no".into())).refusal().unwrap(), "no");
        assert!(is_displaced(&waiting[1]) && !waiting[2..].iter().any(is_displaced));
        assert!(late.take_place().is_ok() && late.arrived());
        let mut waiting = waiting.into_iter();
        assert!(!waiting.next().unwrap().arrived(), "it was displaced before");
        drop(waiting);
        assert!(entrance.lock().waiting.is_empty());
    }
}
