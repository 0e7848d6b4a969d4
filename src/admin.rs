//! Probes, metrics, state dump, on their own port.
