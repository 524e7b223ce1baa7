//! `cargo e2e`: every test of the project.

fn main() {}
