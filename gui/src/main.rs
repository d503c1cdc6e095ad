//! The Scumble viewer.

fn main() {}
