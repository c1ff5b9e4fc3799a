//! Checks that a disk keeps what it is given, whoever serves it.

pub mod device;
pub mod fio;
pub mod fs;
pub mod model;
pub mod pattern;
pub mod tree;
