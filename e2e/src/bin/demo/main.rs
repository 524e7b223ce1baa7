//! tmp
mod plot;
mod series;
fn main() {}
