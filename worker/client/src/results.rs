//! Where results are kept: Redis, or a queue of the caller's own (RPC).

mod address;
mod redis;
mod rpc;
mod store;

pub use self::redis::RedisResults;
pub use address::{RedisAddress, ResultStoreAddress};
pub use rpc::RpcResults;
pub use store::{ReplyAddress, ResultStore, StoreError};
