//! The attribute `#[task]`.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use soloist_worker::{Args, Context, State, TaskError, task};

struct Prices {
    per_piece: u64,
}

#[derive(serde::Deserialize)]
struct Address {
    street: String,
}

#[task("shop.price", ignore_result)]
fn price(_context: Context, prices: State<Prices>, pieces: u64, #[default(10)] percent: u64) -> u64 {
    pieces * prices.per_piece * (100 - percent) / 100
}

#[task("shop.send", max_retries = 5, autoretry_for = ["TimeoutError"])]
async fn send(parcel: String, Args(address): Args<Address>) -> Result<String, TaskError> {
    Ok(format!("{parcel} to {}", address.street))
}

#[test]
fn a_function_knows_its_task() {
    let task = format!("{:?}", price::task());
    assert!(task.contains(r#"name: "shop.price", parameters: ["pieces", "percent"]"#), "{task}");
    assert!(task.contains(r#"kind: "blocking", ignore_result: true"#), "{task}");
    let task = format!("{:?}", send::task());
    assert!(task.contains(r#"name: "shop.send", parameters: ["parcel"]"#), "{task}");
}

#[tokio::test]
async fn the_function_itself_stays_as_it_is() {
    let address = Address { street: "Main Street".to_owned() };
    assert_eq!(send("shoes".to_owned(), Args(address)).await.unwrap(), "shoes to Main Street");
}
