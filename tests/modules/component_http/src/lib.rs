//! A service that does what it is asked: `/COMMAND/ARGUMENT`. For the tests of what serves HTTP.

use std::hint::black_box;
use wasip2::clocks::monotonic_clock::{subscribe_duration, Duration};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam, Scheme,
};
use wasip2::io::streams::StreamError;

struct Service;

impl Guest for Service {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let (command, argument) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let answer = match command {
            "" => Ok("hello\n".into()),
            "env" => std::env::var(argument).map_err(|error| error.to_string()),
            "environment" => Ok(std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect()),
            "echo" => body_of(request),
            "say" => {
                println!("said {argument}");
                eprintln!("muttered {argument}");
                Ok("said".into())
            }
            "flood" => {
                for line in 0..number(argument) {
                    println!("{line:0>99}");
                }
                Ok("flooded".into())
            }
            "sleep" => {
                subscribe_duration(Duration::from(number(argument)) * 1_000_000).block();
                Ok("slept".into())
            }
            "say-and-sleep" => {
                println!("sleeps");
                subscribe_duration(Duration::from(number(argument)) * 1_000_000).block();
                Ok("slept".into())
            }
            "spin" => loop {
                black_box(0);
            },
            "hold" => {
                // MiB, milliseconds
                let (size, time) = argument.split_once('/').unwrap_or((argument, "0"));
                let held = vec![1u8; number(size) as usize * 1024 * 1024];
                subscribe_duration(Duration::from(number(time)) * 1_000_000).block();
                Ok(format!("held {}", black_box(&held).len()))
            }
            "trap" => std::process::abort(),
            "read" => std::fs::read_to_string(format!("/{argument}")).map_err(|error| error.to_string()),
            "write" => std::fs::write(format!("/{argument}"), "written").map(|()| "written".into()).map_err(|error| error.to_string()),
            "fetch" => fetch(argument),
            _ => Err("no such command".into()),
        };
        answer_with(out, answer);
    }
}

fn number(text: &str) -> u32 {
    text.parse().unwrap_or(0)
}

fn answer_with(out: ResponseOutparam, answer: Result<String, String>) {
    let response = OutgoingResponse::new(Fields::new());
    let (status, text) = match answer {
        Ok(text) => (200, text),
        Err(text) => (500, text),
    };
    response.set_status_code(status).unwrap();
    let body = response.body().unwrap();
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().unwrap();
    for piece in text.as_bytes().chunks(4096) {
        stream.blocking_write_and_flush(piece).unwrap();
    }
    drop(stream);
    OutgoingBody::finish(body, None).unwrap();
}

fn body_of(request: IncomingRequest) -> Result<String, String> {
    let body = request.consume().map_err(|()| "no body")?;
    let stream = body.stream().map_err(|()| "no stream")?;
    let mut all = Vec::new();
    loop {
        match stream.blocking_read(65536) {
            Ok(piece) => all.extend(piece),
            Err(StreamError::Closed) => return String::from_utf8(all).map_err(|error| error.to_string()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn fetch(authority: &str) -> Result<String, String> {
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&Scheme::Http)).unwrap();
    request.set_authority(Some(authority)).map_err(|()| "bad authority")?;
    request.set_path_with_query(Some("/")).unwrap();
    let coming = outgoing_handler::handle(request, None).map_err(|error| error.to_string())?;
    coming.subscribe().block();
    let response = coming.get().unwrap().unwrap().map_err(|error| error.to_string())?;
    Ok(format!("fetched {}", response.status()))
}

wasip2::http::proxy::export!(Service);
