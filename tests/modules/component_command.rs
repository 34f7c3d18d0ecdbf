//! A command of WASI preview 2, built by Rust's own toolchain: what its first argument says, told to standard output.

use std::io::{Read, Write};
use std::time::{Duration, Instant};
use std::{env, fs, net, process, thread};

fn main() -> Result<(), String> {
    let arguments: Vec<String> = env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        ["arguments", ..] => println!("{arguments:?}"),
        ["environment"] => env::vars().for_each(|(name, value)| println!("{name}={value}")),
        ["input"] => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|error| error.to_string())?;
            print!("{}", text.to_uppercase());
        }
        ["both"] => {
            print!("to stdout");
            eprint!("to stderr");
        }
        ["exit", code] => process::exit(code.parse().map_err(|_| "no number")?),
        ["fail"] => return Err("as it was told".into()),
        ["panic"] => panic!("as it was told"),
        ["read", path] => print!("{}", fs::read_to_string(path).map_err(|error| error.to_string())?),
        ["write", path, text] => fs::write(path, text).map_err(|error| error.to_string())?,
        ["sleep", seconds] => thread::sleep(Duration::from_secs_f64(seconds.parse().map_err(|_| "no number")?)),
        ["flood", count] => {
            let line = [b'x'; 1024];
            let mut output = std::io::stdout().lock();
            for _ in 0..count.parse().map_err(|_| "no number")? {
                output.write_all(&line).map_err(|error| error.to_string())?;
            }
        }
        ["fill", megabytes] => {
            let count: usize = megabytes.parse().map_err(|_| "no number")?;
            println!("{}", vec![1_u8; count << 20].iter().map(|byte| usize::from(*byte)).sum::<usize>() >> 20);
        }
        ["connect", address] => match net::TcpStream::connect(address) {
            Ok(mut stream) => {
                stream.write_all(b"hello\n").map_err(|error| error.to_string())?;
                println!("connected");
            }
            Err(error) => println!("{error}"),
        },
        ["clock"] => {
            let began = Instant::now();
            println!("{}", began.elapsed() < Duration::from_secs(5));
        }
        ["spin"] => loop {
            std::hint::black_box(0);
        },
        _ => return Err(format!("{words:?} means nothing here")),
    }
    Ok(())
}
