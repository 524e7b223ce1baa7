use celery_protocol::{Arguments, Embed};
use serde_json::json;

use super::*;

fn request(embed: Embed) -> Arc<Request> {
    let group = Some("g".to_owned());
    Arc::new(Request {
        embed,
        group,
        group_index: Some(2),
        ..Request::new("t.add", "id1", Arguments::default())
    })
}

fn home() -> Home {
    Home {
        queue: "red".into(),
        exchange: String::new(),
        routing_key: "red".to_owned(),
        is_redelivered: false,
        is_sequel: false,
    }
}

fn success() -> Ending {
    Ending::Success(to_raw_value(&3).unwrap())
}

#[test]
fn nothing_follows_an_empty_embed() {
    let empty = Embed { callbacks: Some(vec![]), chain: Some(vec![]), ..Embed::default() };
    assert!(Sequel::new(&request(empty), success()).is_none());
    let chord = Embed { chord: Some(Box::default()), ..Embed::default() };
    assert!(Sequel::new(&request(chord), success()).is_some());
}

#[test]
fn membership_of_a_group_is_not_of_a_chord() {
    assert!(part_of(&request(Embed::default()), &success()).is_none());
    let body = Signature::new("t.sum");
    let in_chord = request(Embed { chord: Some(Box::new(body.clone())), ..Embed::default() });
    let (part, of) = part_of(&in_chord, &success()).unwrap();
    assert_eq!((part.group_id.as_str(), part.index, part.result.get()), ("g", Some(2), "3"));
    assert_eq!((part.state, of), (State::Success, body));
    let revoked = Ending::Revoked(Exception::task_revoked("revoked"));
    assert_eq!(part_of(&in_chord, &revoked).unwrap().0.state, State::Revoked);
}

#[test]
fn what_follows_has_the_same_ids_each_time() {
    let (request, home) = (request(Embed::default()), home());
    let ids = || {
        let mut parent = Parent::new(&request, &home);
        [parent.new_id(), parent.new_id()]
    };
    assert_eq!(ids(), ids());
    assert_ne!(ids()[0], ids()[1]);
    let other = Request { retries: 1, ..(*request).clone() };
    assert_ne!(Parent::new(&other, &home).new_id(), ids()[0]);
}

#[test]
fn what_follows_belongs_to_the_same_workflow() {
    let request = Request { root_id: Some("first".to_owned()), ..(*request(Embed::default())).clone() };
    let overrides = Parent::new(&request, &home()).overrides();
    assert_eq!(Value::Object(overrides), json!({"root_id": "first", "parent_id": "id1"}));
}
