//! Just enough HTTP to ask the worker's probes and RabbitMQ's management API.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

/// Status and body of a GET.
pub(crate) fn get(host_and_port: &str, path: &str) -> (u16, String) {
    request(host_and_port, "GET", path, "", "")
}

/// Status and body of any request. `headers` end in a line break each.
pub(crate) fn request(
    host_and_port: &str,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, String) {
    let mut stream = TcpStream::connect(host_and_port).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {host_and_port}\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}
