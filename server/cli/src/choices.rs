//! The server's choices as clap shows them: the library knows no command line.

use clap::ValueEnum;
use thallus_server::config::{ExposureChoice, FabricChoice, MemoryPoolKind};

macro_rules! choices {
    ($($(#[$doc:meta])* $arg:ident as $kind:ident { $($(#[$of:meta])* $name:ident,)* })*) => {
        $($(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
        pub enum $arg {
            $($(#[$of])* $name,)*
        }

        impl From<$arg> for $kind {
            fn from(arg: $arg) -> $kind {
                match arg {
                    $($arg::$name => $kind::$name,)*
                }
            }
        })*
    };
}

choices! {
    /// Which fabric carries the data plane.
    FabricArg as FabricChoice {
        /// The best that works here; inline, with a warning, if none does.
        Auto,
        /// Shared memory, for clients of this host only, or fail to start.
        Shm,
        /// UCX, or fail to start.
        Ucx,
        /// InfiniBand verbs, or fail to start.
        Verbs,
        /// None: all results travel inline over the control connection.
        None,
    }

    /// How lent memory is opened to a client over verbs.
    ExposureArg as ExposureChoice {
        /// Windows on a device that has and enforces them, else registrations.
        Auto,
        /// A memory window over exactly what is lent, for as long as it is: microseconds per loan.
        Windows,
        /// A registration of exactly what is lent, for as long as it is: pins every page of every loan.
        Registrations,
        /// One key for all memory: costs nothing, and every client can read every other's results.
        Whole,
    }

    /// How queries share the engine's memory.
    MemoryPoolArg as MemoryPoolKind {
        /// Every operator that can spill gets an equal share: one query cannot starve the others, and spills earlier.
        Fair,
        /// First come, first served: a query alone gets everything.
        Greedy,
    }
}
