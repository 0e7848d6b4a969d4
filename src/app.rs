//! Composition root: the one place where real things are built, joined and spawned.
