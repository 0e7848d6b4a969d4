//! Typed configuration of hearthd.
