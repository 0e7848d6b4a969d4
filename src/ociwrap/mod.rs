//! The runc-shaped command line of hearth-runsc.
