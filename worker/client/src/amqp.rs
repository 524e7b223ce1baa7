//! Between the protocol's values and lapin's: headers, properties, deliveries.

use celery_protocol::{Map, Message, Properties};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use serde_json::{Number, Value};
use std::collections::BTreeMap;

/// A text as an AMQP short string: at most 255 bytes, cut at a character's end.
///
/// Names of queues, exchanges and routing keys are this short in AMQP; a longer one could not exist on the broker.
#[must_use]
pub fn short(text: &str) -> ShortString {
    let mut end = text.len().min(usize::from(u8::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    ShortString::try_new(&text[..end]).unwrap_or_default()
}

/// Headers as protocol values.
#[must_use]
pub fn headers(table: &FieldTable) -> Map {
    table.inner().iter().map(|(key, value)| (key.as_str().to_owned(), to_value(value))).collect()
}

fn to_value(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(flag) => Value::Bool(*flag),
        AMQPValue::ShortShortInt(number) => (*number).into(),
        AMQPValue::ShortShortUInt(number) => (*number).into(),
        AMQPValue::ShortInt(number) => (*number).into(),
        AMQPValue::ShortUInt(number) => (*number).into(),
        AMQPValue::LongInt(number) => (*number).into(),
        AMQPValue::LongUInt(number) => (*number).into(),
        AMQPValue::LongLongInt(number) => (*number).into(),
        AMQPValue::Float(number) => f64::from(*number).into(),
        AMQPValue::Double(number) => (*number).into(),
        AMQPValue::DecimalValue(decimal) => {
            (f64::from(decimal.value) / 10_f64.powi(i32::from(decimal.scale))).into()
        }
        AMQPValue::ShortString(text) => text.as_str().into(),
        AMQPValue::LongString(text) => lossy(text.as_bytes()),
        AMQPValue::ByteArray(bytes) => lossy(bytes.as_slice()),
        AMQPValue::Timestamp(seconds) => (*seconds).into(),
        AMQPValue::FieldArray(items) => items.as_slice().iter().map(to_value).collect(),
        AMQPValue::FieldTable(table) => Value::Object(headers(table)),
        AMQPValue::Void => Value::Null,
    }
}

fn lossy(bytes: &[u8]) -> Value {
    String::from_utf8_lossy(bytes).into_owned().into()
}

/// Protocol values as headers, in the types that Python's client writes and reads.
///
/// Texts are long strings; RabbitMQ takes AMQP's short ones for numbers. A header whose name is longer than the 255
/// bytes that AMQP has for it is left out.
#[must_use]
pub fn table(headers: &Map) -> FieldTable {
    let field =
        |(key, value): (&String, &Value)| Some((ShortString::try_new(key.as_str()).ok()?, from_value(value)));
    // All at once: one by one, each would push others aside.
    headers.iter().filter_map(field).collect::<BTreeMap<_, _>>().into()
}

fn from_value(value: &Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(flag) => AMQPValue::Boolean(*flag),
        Value::Number(number) => from_number(number),
        Value::String(text) => AMQPValue::LongString(LongString::from(text.as_bytes())),
        Value::Array(items) => AMQPValue::FieldArray(items.iter().map(from_value).collect::<Vec<_>>().into()),
        Value::Object(items) => AMQPValue::FieldTable(table(items)),
    }
}

/// AMQP has no unsigned 64-bit integers, so the largest become floats.
fn from_number(number: &Number) -> AMQPValue {
    match number.as_i64() {
        Some(integer) => i32::try_from(integer).map_or(AMQPValue::LongLongInt(integer), AMQPValue::LongInt),
        None => AMQPValue::Double(number.as_f64().unwrap_or_default()),
    }
}

/// The properties that Celery uses.
#[must_use]
pub fn properties(properties: &BasicProperties) -> Properties {
    let text = |text: &Option<ShortString>| text.as_ref().map(|text| text.as_str().to_owned());
    Properties {
        content_type: text(properties.content_type()),
        content_encoding: text(properties.content_encoding()),
        delivery_mode: *properties.delivery_mode(),
        priority: *properties.priority(),
        correlation_id: text(properties.correlation_id()),
        reply_to: text(properties.reply_to()),
        expiration: text(properties.expiration()),
    }
}

/// A message's headers and properties for publishing.
#[must_use]
pub fn basic_properties(message: &Message) -> BasicProperties {
    let mut basic = BasicProperties::default().with_headers(table(&message.headers));
    let from = &message.properties;
    if let Some(content_type) = &from.content_type {
        basic = basic.with_content_type(short(content_type));
    }
    if let Some(content_encoding) = &from.content_encoding {
        basic = basic.with_content_encoding(short(content_encoding));
    }
    if let Some(delivery_mode) = from.delivery_mode {
        basic = basic.with_delivery_mode(delivery_mode);
    }
    if let Some(priority) = from.priority {
        basic = basic.with_priority(priority);
    }
    if let Some(correlation_id) = &from.correlation_id {
        basic = basic.with_correlation_id(short(correlation_id));
    }
    if let Some(reply_to) = &from.reply_to {
        basic = basic.with_reply_to(short(reply_to));
    }
    if let Some(expiration) = &from.expiration {
        basic = basic.with_expiration(short(expiration));
    }
    basic
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::{ByteArray, DecimalValue, FieldArray};
    use serde_json::json;

    #[test]
    fn headers_survive_the_way_there_and_back() {
        let map = json!({
            "task": "t", "retries": 0, "big": 5_000_000_000_i64, "eta": null, "timelimit": [null, 2.5],
            "stamps": {"tenant": ["a", true]},
        });
        let map = map.as_object().unwrap();
        let table = table(map);
        assert!(matches!(table.inner()["task"], AMQPValue::LongString(_)));
        assert!(matches!(table.inner()["retries"], AMQPValue::LongInt(0)));
        assert!(matches!(table.inner()["big"], AMQPValue::LongLongInt(5_000_000_000)));
        let sorted = |map: &Map| {
            map.iter().map(|(k, v)| (k.clone(), v.clone())).collect::<std::collections::BTreeMap<_, _>>()
        };
        assert_eq!(sorted(&headers(&table)), sorted(map));
    }

    #[test]
    fn what_only_brokers_write_is_read_too() {
        let mut table = FieldTable::default();
        table.insert("time".into(), AMQPValue::Timestamp(1));
        table.insert("bytes".into(), AMQPValue::ByteArray(ByteArray::from(vec![b'a', 0xff])));
        table.insert("decimal".into(), AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 125 }));
        table.insert(
            "x-death".into(),
            AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(FieldTable::default())])),
        );
        let expected = json!({"bytes": "a\u{fffd}", "decimal": 1.25, "time": 1, "x-death": [{}]});
        assert_eq!(Value::Object(headers(&table)), expected);
    }

    #[test]
    fn properties_survive_the_way_there_and_back() {
        let message = Message {
            properties: Properties {
                content_type: Some("application/json".into()),
                delivery_mode: Some(2),
                priority: Some(3),
                reply_to: Some(String::new()),
                expiration: Some("60000".into()),
                ..Properties::default()
            },
            ..Message::default()
        };
        assert_eq!(properties(&basic_properties(&message)), message.properties);
    }

    #[test]
    fn long_names_are_cut_at_a_characters_end() {
        let cut = short(&"é".repeat(200));
        assert_eq!(cut.as_str().len(), 254);
    }
}
