//! Where results are kept: Redis, or a queue of the caller's own (RPC).

mod address;
mod chords;
mod groups;
mod redis;
mod replies;
mod rpc;
mod runs;
mod store;
mod subscriptions;

pub use self::redis::RedisResults;
pub(crate) use self::redis::decode;
pub use address::{RedisAddress, ResultStoreAddress};
pub use chords::{ChordError, ChordPart, ChordProgress};
pub(crate) use replies::{Awaited, Replies, Reply};
pub use rpc::RpcResults;
pub use runs::{OtherRuns, RunKey};
pub use store::{ReplyAddress, ResultStore, StoreError};
pub(crate) use subscriptions::{Subscriptions, Update};
