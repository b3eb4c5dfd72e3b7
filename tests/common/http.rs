//! A client of the server of --http.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::program::{DEADLINE, Running};

/// A response: its status, its headers as they came, and its body.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

/// Waits until the program says on stderr where it serves.
pub fn served_at(program: &Running) -> SocketAddr {
    loop {
        let line = program.stderr.line();
        let address = line.split_once("the figures are at http://").map(|(_, rest)| rest.trim_end_matches('/'));
        if let Some(address) = address {
            return address.parse().unwrap();
        }
    }
}

/// A connection that fails instead of waiting for ever.
pub fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends these bytes, and reads the response to its end.
pub fn exchange(server: SocketAddr, request: &[u8]) -> Response {
    let mut stream = connect(server);
    stream.write_all(request).unwrap();
    response(stream)
}

pub fn response(mut stream: TcpStream) -> Response {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (headers, body) = text.split_once("\r\n\r\n").expect("headers");
    let status = headers.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).expect(headers).parse().unwrap();
    Response { status, headers: headers.to_owned(), body: body.to_owned() }
}

/// Asks for a page as a browser does.
pub fn get(server: SocketAddr, target: &str) -> Response {
    exchange(server, format!("GET {target} HTTP/1.1\r\nHost: {server}\r\n\r\n").as_bytes())
}
