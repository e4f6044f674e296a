//! What a person sees while it happens: one line per thing that was seen, with the time since the start.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::Instant;

/// Octets in a line of a hexadecimal dump.
const DUMP_WIDTH: usize = 16;

/// Where the lines go; with `--json` nowhere, for then the one object at the end is all.
#[derive(Debug)]
pub struct Screen {
    quiet: bool,
    started: Instant,
}

impl Screen {
    /// A screen whose clock starts now.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, started: Instant::now() }
    }

    /// One thing that happened.
    pub fn step(&self, text: impl Display) {
        self.line(format_args!("[{:4.1} s] {text}", self.started.elapsed().as_secs_f64()));
    }

    /// More about it, below.
    pub fn detail(&self, text: impl Display) {
        for line in text.to_string().lines() {
            self.line(format_args!("         {line}"));
        }
    }

    /// Anything else. A terminal that went away is not a reason to stop before everything is cleaned up.
    pub fn line(&self, text: impl Display) {
        if !self.quiet {
            let mut out = io::stdout().lock();
            let _ = writeln!(out, "{text}");
            let _ = out.flush();
        }
    }
}

/// Octets for people: place, hexadecimal, and as text where they are printable; at most `lines` lines.
pub fn hex_dump(octets: &[u8], lines: usize) -> String {
    let mut text = String::new();
    for (number, chunk) in octets.chunks(DUMP_WIDTH).take(lines).enumerate() {
        let hex: Vec<_> = chunk.iter().map(|octet| format!("{octet:02x}")).collect();
        let printable: String = chunk
            .iter()
            .map(|&octet| if octet.is_ascii_graphic() || octet == b' ' { char::from(octet) } else { '.' })
            .collect();
        text += &format!("{:04x}  {:<47}  {printable}\n", number * DUMP_WIDTH, hex.join(" "));
    }
    let shown = lines * DUMP_WIDTH;
    if octets.len() > shown {
        text += &format!("...   and {} octets more\n", octets.len() - shown);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_shows_place_octets_and_text() {
        let octets: Vec<u8> = (0x1e..0x32).collect();
        assert_eq!(
            hex_dump(&octets, 2),
            "0000  1e 1f 20 21 22 23 24 25 26 27 28 29 2a 2b 2c 2d  .. !\"#$%&'()*+,-\n\
             0010  2e 2f 30 31                                      ./01\n"
        );
        assert!(hex_dump(&octets, 1).ends_with("...   and 4 octets more\n"));
        assert_eq!(hex_dump(&[], 4), "");
    }
}
