//! What workers tell each other of messages that came back.

use std::time::Duration;

use crate::support::{setting, unique};
use celery_client::results::{OtherRuns, RedisResults, ResultStoreAddress, RunKey};
use celery_protocol::{Arguments, Request};

#[tokio::test]
#[ignore = "needs Redis: REDIS_URL"]
async fn a_run_that_came_to_an_end_is_no_longer_counted() {
    let ResultStoreAddress::Redis(address) = setting("REDIS_URL").parse().unwrap() else {
        panic!("not Redis")
    };
    let redis = RedisResults::connect(&address).await.unwrap();
    let run = RunKey::of(&Request::new("tk.add", unique("client-test"), Arguments::default()));
    for begun in 1..=2 {
        assert_eq!(redis.begin_again(&run).await.unwrap(), OtherRuns::Begun(begun));
    }
    redis.forget_run(&run, "a").await.unwrap();
    assert_eq!(redis.begin_again(&run).await.unwrap(), OtherRuns::Begun(1));
    redis.hold_run(&run, "a", Duration::from_secs(60)).await.unwrap();
    redis.forget_run(&run, "b").await.unwrap();
    assert_eq!(redis.begin_again(&run).await.unwrap(), OtherRuns::Running, "by another worker");
    redis.forget_run(&run, "a").await.unwrap();
    assert_eq!(redis.begin_again(&run).await.unwrap(), OtherRuns::Begun(1));
    redis.finish_run(&run).await.unwrap();
    redis.forget_run(&run, "a").await.unwrap();
    assert_eq!(
        redis.begin_again(&run).await.unwrap(),
        OtherRuns::Done,
        "nor is it forgotten that it is done"
    );
}
