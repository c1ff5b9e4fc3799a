//! Kernel structures and numbers; no logic.
