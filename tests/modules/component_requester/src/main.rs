//! A command that asks for http://FIRST-ARGUMENT/ and prints status and body.

use wasi::http::outgoing_handler::handle;
use wasi::http::types::{Fields, OutgoingRequest, Scheme};

fn main() -> Result<(), String> {
    let authority = std::env::args().nth(1).ok_or("which host?")?;
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&Scheme::Http)).map_err(|()| "scheme")?;
    request.set_authority(Some(&authority)).map_err(|()| "authority")?;
    request.set_path_with_query(Some("/")).map_err(|()| "path")?;
    let answer = handle(request, None).map_err(|error| error.to_string())?;
    answer.subscribe().block();
    let response = answer.get().ok_or("no answer")?.map_err(|()| "taken")?.map_err(|error| error.to_string())?;
    println!("{}", response.status());
    let body = response.consume().map_err(|()| "body")?;
    let stream = body.stream().map_err(|()| "stream")?;
    while let Ok(bytes) = stream.blocking_read(4096) {
        print!("{}", String::from_utf8_lossy(&bytes));
    }
    Ok(())
}
