use super::*;
use lapin::message::{BasicReturnMessage, Delivery};
use lapin::protocol::{AMQPError, AMQPHardError, AMQPSoftError};
use lapin::types::FieldTable;

type Told = oneshot::Receiver<Result<(), PublishError>>;

fn message(label: &str) -> Identity {
    Identity { label: Some(label.into()), exchange: "".into(), routing_key: "queue".into() }
}

fn settled(label: &str, confirmation: lapin::Result<Confirmation>) -> (Settled, Told) {
    let (done, told) = oneshot::channel();
    (Settled { message: message(label), confirmation, done }, told)
}

/// A confirm, and the label of the message whose return came with it.
fn ack(label: &str, back: Option<&str>) -> (Settled, Told) {
    settled(label, Ok(Confirmation::Ack(back.map(came_back))))
}

fn came_back(label: &str) -> BasicReturnMessage {
    let mut delivery = Delivery::mock(0, "".into(), "queue".into(), false, Vec::new());
    delivery.properties = BasicProperties::default().with_correlation_id(label.into());
    BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO_ROUTE".into() }
}

fn is_unroutable(told: &mut Told) -> bool {
    match told.try_recv().expect("told") {
        Ok(()) => false,
        Err(PublishError::Unroutable { .. }) => true,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_return_that_comes_with_a_later_confirm_is_not_missed() {
    let mut returned = Returned::default();
    let ((a, mut a_told), (b, mut b_told)) = (ack("a", None), ack("b", Some("a")));
    returned.settle(vec![a, b], false);
    assert!(is_unroutable(&mut a_told));
    assert!(!is_unroutable(&mut b_told));
    assert!(returned.unclaimed.is_empty() && returned.held.is_empty());
}

#[test]
fn who_got_the_return_of_another_waits_for_its_own() {
    let mut returned = Returned::default();
    let ((a, mut a_told), (b, mut b_told)) = (ack("a", Some("b")), ack("b", Some("a")));
    let (c, mut c_told) = ack("c", None);
    returned.settle(vec![a, c], false);
    assert!(!is_unroutable(&mut c_told));
    assert!(a_told.try_recv().is_err(), "its own return may be still to come");
    returned.settle(vec![b], false);
    assert!(is_unroutable(&mut a_told));
    assert!(is_unroutable(&mut b_told));
    assert!(returned.unclaimed.is_empty() && returned.held.is_empty());
}

#[test]
fn who_got_the_return_of_another_arrived_once_that_one_is_told() {
    let mut returned = Returned::default();
    let ((a, mut a_told), (b, mut b_told)) = (ack("a", Some("b")), ack("b", None));
    returned.settle(vec![a], false);
    assert!(a_told.try_recv().is_err());
    returned.settle(vec![b], false);
    assert!(!is_unroutable(&mut a_told));
    assert!(is_unroutable(&mut b_told));
}

#[test]
fn two_messages_that_look_the_same_both_come_back() {
    let mut returned = Returned::default();
    let ((a, mut a_told), (b, mut b_told)) = (ack("a", None), ack("a", None));
    let ((c, mut c_told), (d, mut d_told)) = (ack("c", Some("a")), ack("d", Some("a")));
    returned.settle(vec![a, b, c, d], false);
    assert!(is_unroutable(&mut a_told) && is_unroutable(&mut b_told));
    assert!(!is_unroutable(&mut c_told) && !is_unroutable(&mut d_told));
}

#[test]
fn nothing_is_kept_once_nothing_is_on_its_way() {
    let mut returned = Returned::default();
    let (a, mut a_told) = ack("a", Some("never sent"));
    returned.settle(vec![a], true);
    assert!(!is_unroutable(&mut a_told));
    assert!(returned.unclaimed.is_empty() && returned.held.is_empty());
}

#[test]
fn a_refusal_may_carry_the_return_of_another() {
    let mut returned = Returned::default();
    let (a, mut a_told) = ack("a", None);
    let (b, mut b_told) = settled("b", Ok(Confirmation::Nack(Some(came_back("a")))));
    returned.settle(vec![b, a], false);
    assert!(is_unroutable(&mut a_told));
    assert!(matches!(b_told.try_recv(), Ok(Err(PublishError::Refused { .. }))));
}

#[test]
fn a_missing_exchange_is_the_fault_of_who_publishes_to_it() {
    let closed = |text: &str| {
        let error = AMQPError::new(AMQPSoftError::NOTFOUND.into(), text.into());
        lapin::Error::from(ErrorKind::ProtocolError(error))
    };
    let told = |exchange: &str, text: &str| {
        let (mut settled, mut told) = settled("a", Err(closed(text)));
        settled.message.exchange = exchange.into();
        Returned::default().settle(vec![settled], true);
        told.try_recv().expect("told").expect_err("lost")
    };
    let text = "NOT_FOUND - no exchange 'gone' in vhost '/'";
    assert!(!told("gone", text).is_worth_a_retry());
    assert!(told("", text).is_worth_a_retry());
    assert!(told("go", text).is_worth_a_retry());
    assert!(told("/", text).is_worth_a_retry());
}

#[test]
fn an_error_within_the_broker_is_worth_a_retry() {
    let lost = |kind: AMQPErrorKind| {
        let source = ErrorKind::ProtocolError(AMQPError::new(kind, "".into())).into();
        PublishError::Lost { routing_key: "queue".to_owned(), source }.is_worth_a_retry()
    };
    for hard in [AMQPHardError::CONNECTIONFORCED, AMQPHardError::RESOURCEERROR, AMQPHardError::INTERNALERROR]
    {
        assert!(lost(hard.into()));
    }
    assert!(!lost(AMQPHardError::NOTALLOWED.into()) && !lost(AMQPSoftError::PRECONDITIONFAILED.into()));
}

#[test]
fn what_is_sent_again_says_so_and_keeps_what_it_says() {
    let headers = |before: FieldTable| {
        let properties = BasicProperties::default().with_headers(before);
        let (exchange, routing_key, body) = Default::default();
        let again = sent_again(Outgoing { exchange, routing_key, properties, body });
        serde_json::Value::from(crate::amqp::headers(again.properties.headers().as_ref().unwrap()))
    };
    let mut before = FieldTable::default();
    before.insert("id".into(), AMQPValue::LongString("a".into()));
    assert_eq!(serde_json::json!({"id": "a", ATTEMPTS_HEADER: 0}), headers(before.clone()));
    before.insert(ATTEMPTS_HEADER.into(), AMQPValue::LongInt(2));
    assert_eq!(serde_json::json!({"id": "a", ATTEMPTS_HEADER: 2}), headers(before));
}
