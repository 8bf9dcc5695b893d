//! Command line of pillbug.

fn main() {}
