//! blockhaus command
fn main() {}
