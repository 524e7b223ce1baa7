//! What workers tell each other of messages that came back.

use std::time::Duration;

use crate::support::{setting, unique};
use celery_client::results::{ChordPart, ChordProgress, OtherRuns, RedisResults, ResultStoreAddress, RunKey};
use celery_protocol::canvas::ChordStart;
use celery_protocol::{Arguments, Request, State};

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

#[tokio::test]
#[ignore = "needs Redis: REDIS_URL"]
async fn a_chord_that_begins_anew_waits_for_members_that_are_added_anew() {
    let ResultStoreAddress::Redis(address) = setting("REDIS_URL").parse().unwrap() else {
        panic!("not Redis")
    };
    let redis = RedisResults::connect(&address).await.unwrap();
    let chord = ChordStart { group_id: unique("client-test"), size: 1, nested_header: None };
    let part = |task_id: &str| ChordPart {
        group_id: chord.group_id.clone(),
        index: Some(0),
        task_id: task_id.to_owned(),
        state: State::Success,
        result: serde_json::value::to_raw_value(&1).unwrap(),
        size: None,
    };
    for round in ["first", "second"] {
        redis.begin_chord(&chord, true).await.unwrap();
        redis.add_to_chord(&chord.group_id, "added").await.unwrap();
        for (task_id, progress) in [("member", ChordProgress::Waiting), ("added", ChordProgress::Claimed)] {
            let reported = redis.report_chord_part(&part(task_id), round).await.unwrap();
            assert_eq!(reported, progress, "{task_id}, {round} time");
        }
    }
}
