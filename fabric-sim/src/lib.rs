//! Thallus.
