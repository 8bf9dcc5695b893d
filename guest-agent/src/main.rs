//! The first process of a pillbug virtual machine.

fn main() {}
