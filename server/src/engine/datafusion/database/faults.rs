//! Steps of the disk, at which tests stop it. Outside of tests there are none.

use std::io;

/// The faults of a disk.
#[derive(Debug, Default)]
pub(super) struct Faults {
    #[cfg(test)]
    plan: std::sync::Mutex<Plan>,
}

#[cfg(not(test))]
impl Faults {
    pub(super) fn step(&self, _: &'static str) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn write(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
}

/// Faults of a disk in a test.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The steps so far.
    pub(super) log: Vec<&'static str>,
    /// Steps until the process is as good as killed: from then on nothing changes the disk.
    pub(super) killed_after: Option<usize>,
    /// Steps that fail, by their names.
    pub(super) failing: Option<&'static str>,
    /// Bytes that fit on the disk.
    pub(super) room: Option<usize>,
}

#[cfg(test)]
impl Faults {
    pub(super) fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan.lock().unwrap()
    }

    pub(super) fn step(&self, name: &'static str) -> io::Result<()> {
        let mut plan = self.plan();
        if plan.killed_after.is_some_and(|steps| plan.log.len() >= steps) {
            return Err(io::Error::other("killed"));
        }
        plan.log.push(name);
        if plan.failing == Some(name) { Err(io::Error::other(format!("{name} fails"))) } else { Ok(()) }
    }

    pub(super) fn write(&self, bytes: usize) -> io::Result<()> {
        let mut plan = self.plan();
        if plan.killed_after.is_some_and(|steps| plan.log.len() >= steps) {
            return Err(io::Error::other("killed"));
        }
        match &mut plan.room {
            Some(room) if *room < bytes => Err(io::ErrorKind::StorageFull.into()),
            Some(room) => {
                *room -= bytes;
                Ok(())
            }
            None => Ok(()),
        }
    }
}
