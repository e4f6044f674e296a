//! Answers of HTTP/1 as a client reads them: octets to statuses and bodies (RFC 9112), however the stream cuts them into pieces.
//!
//! There is no socket in here. Whoever has one feeds what came; after each piece it asks for the head, and then for as much of the
//! body as there is. What was not taken yet stays for the next time.

/// Fields in the head of an answer: Docker sends nine.
const MAX_FIELDS: usize = 64;

/// Octets in front of a chunk: its size, and extensions that nobody uses.
const MAX_CHUNK_HEAD: usize = 256;

/// What an answer may be.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether the connection goes on behind an answer. Then each is of HTTP/1.1, says where it ends, and is read with its trailers.
    /// Otherwise an answer may be of HTTP/1.0 and may end with the stream, and nobody looks behind its last chunk.
    pub is_kept: bool,
    /// Octets of a head, and of trailers.
    pub max_head: usize,
    /// Octets of a body that says its length, or of a chunk.
    pub max_part: u64,
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AnswerError {
    /// The other side ended the connection in the middle of an answer.
    #[error("the connection ended in the middle of an answer")]
    CutOff,
    /// What came is not HTTP.
    #[error("the answer is not HTTP: {0}")]
    Malformed(String),
    /// More than anybody should say.
    #[error("the answer has more than {0} octets")]
    TooLong(u64),
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// A head.
    Head,
    /// So many octets of a body.
    Length(u64),
    /// A chunk's size.
    ChunkSize,
    /// So many octets of a chunk.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    /// Trailers up to an empty line, after so many octets of them.
    Trailers(usize),
    /// A body that ends with the stream.
    Stream,
    /// Nothing: the answer has ended.
    Nothing,
}

/// The answers that come by one connection.
#[derive(Debug)]
pub struct Answers {
    rules: Rules,
    /// What came in and was not looked at yet.
    raw: Vec<u8>,
    next: Next,
}

impl Answers {
    /// Nothing was asked yet.
    #[must_use]
    pub const fn new(rules: Rules) -> Self {
        Self { rules, raw: Vec::new(), next: Next::Nothing }
    }

    /// Something was asked: its answer comes next.
    pub const fn begin(&mut self) {
        self.next = Next::Head;
    }

    /// Takes what came from the other side.
    pub fn feed(&mut self, octets: &[u8]) {
        self.raw.extend_from_slice(octets);
    }

    /// The other side says no more: that ends a body that ends with the stream.
    ///
    /// # Errors
    /// Where something else was to come.
    pub fn hang_up(&mut self) -> Result<(), AnswerError> {
        if self.next != Next::Stream {
            return Err(AnswerError::CutOff);
        }
        self.next = Next::Nothing;
        Ok(())
    }

    /// Whether the answer was read to its end.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.next == Next::Nothing
    }

    /// The answer's status, once its head is whole. Interim answers (1xx) are passed over.
    ///
    /// # Errors
    /// If this is no head.
    pub fn head(&mut self) -> Result<Option<u16>, AnswerError> {
        loop {
            let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
            let mut head = httparse::Response::new(&mut fields);
            let (max, seen) = (self.rules.max_head, start(&self.raw, self.rules.max_head));
            let len = match head.parse(seen).map_err(|error| malformed(error.to_string()))? {
                httparse::Status::Complete(len) => len,
                httparse::Status::Partial if seen.len() == max => return Err(AnswerError::TooLong(max as u64)),
                httparse::Status::Partial => return Ok(None),
            };
            if self.rules.is_kept && head.version != Some(1) {
                return Err(malformed("HTTP/1.0, which keeps no connection"));
            }
            let status = head.code.unwrap_or_default();
            let next = self.rules.framing(status, head.headers)?;
            self.raw.drain(..len);
            if !(100..200).contains(&status) {
                self.next = next;
                return Ok(Some(status));
            }
        }
    }

    /// Appends what is there of the body.
    ///
    /// # Errors
    /// If it is none.
    pub fn body(&mut self, body: &mut Vec<u8>) -> Result<(), AnswerError> {
        loop {
            match self.next {
                Next::Length(0) => self.next = Next::Nothing,
                Next::Head | Next::Nothing => return Ok(()),
                _ if self.raw.is_empty() => return Ok(()),
                Next::Stream => body.append(&mut self.raw),
                Next::Length(left) => self.next = Next::Length(left - self.take(left, body)),
                Next::Chunk(left) => {
                    let left = left - self.take(left, body);
                    self.next = if left == 0 { Next::ChunkEnd } else { Next::Chunk(left) };
                }
                Next::ChunkEnd => match self.raw.as_slice() {
                    [b'\r', b'\n', ..] => {
                        self.raw.drain(..2);
                        self.next = Next::ChunkSize;
                    }
                    [b'\r'] => return Ok(()),
                    _ => return Err(malformed("a chunk without its end")),
                },
                Next::ChunkSize => match self.chunk_size()? {
                    None => return Ok(()),
                    Some(0) if self.rules.is_kept => self.next = Next::Trailers(0),
                    Some(0) => self.next = Next::Nothing,
                    Some(size) => self.next = Next::Chunk(self.rules.part(size)?),
                },
                Next::Trailers(seen) => {
                    let line = self.raw.windows(2).position(|window| window == b"\r\n");
                    let len = line.map_or(self.raw.len(), |end| end + 2);
                    if seen + len > self.rules.max_head {
                        return Err(AnswerError::TooLong(self.rules.max_head as u64));
                    }
                    let Some(end) = line else { return Ok(()) };
                    self.raw.drain(..len);
                    self.next = if end == 0 { Next::Nothing } else { Next::Trailers(seen + len) };
                }
            }
        }
    }

    /// A chunk's size, once its line is whole.
    fn chunk_size(&mut self) -> Result<Option<u64>, AnswerError> {
        let seen = start(&self.raw, MAX_CHUNK_HEAD);
        // The parser takes a line without a digit for the last chunk.
        let has_digit = seen.first().is_some_and(u8::is_ascii_hexdigit);
        match httparse::parse_chunk_size(seen) {
            Ok(httparse::Status::Complete((len, size))) if has_digit => {
                self.raw.drain(..len);
                Ok(Some(size))
            }
            Ok(httparse::Status::Partial) if has_digit && seen.len() < MAX_CHUNK_HEAD => Ok(None),
            _ => Err(malformed("a chunk without its size")),
        }
    }

    fn take(&mut self, left: u64, body: &mut Vec<u8>) -> u64 {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(self.raw.len());
        body.extend(self.raw.drain(..len));
        len as u64
    }
}

impl Rules {
    /// RFC 9112 §6.3: chunks before a length, a length before the stream's end.
    fn framing(&self, status: u16, fields: &[httparse::Header<'_>]) -> Result<Next, AnswerError> {
        let field = |name: &str| {
            let found = fields.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            Some(String::from_utf8_lossy(found.value).trim().to_ascii_lowercase())
        };
        if matches!(status, 100..200 | 204 | 304) {
            return Ok(Next::Nothing);
        }
        match (field("transfer-encoding"), field("content-length")) {
            (Some(coding), _) if coding == "chunked" => Ok(Next::ChunkSize),
            (Some(coding), _) => Err(malformed(format!("unknown transfer coding {coding:?}"))),
            (None, Some(length)) => match length.parse() {
                Ok(length) => Ok(Next::Length(self.part(length)?)),
                Err(_) => Err(malformed(format!("Content-Length {length:?}"))),
            },
            (None, None) if self.is_kept => Err(malformed("neither Content-Length nor chunks")),
            (None, None) => Ok(Next::Stream),
        }
    }

    const fn part(&self, octets: u64) -> Result<u64, AnswerError> {
        if octets > self.max_part { Err(AnswerError::TooLong(self.max_part)) } else { Ok(octets) }
    }
}

/// As much as is ever looked at: whoever sends more at once gets no further than who sends it bit by bit.
fn start(raw: &[u8], max: usize) -> &[u8] {
    &raw[..raw.len().min(max)]
}

fn malformed(what: impl Into<String>) -> AnswerError {
    AnswerError::Malformed(what.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLOSING: Rules = Rules { is_kept: false, max_head: 256, max_part: u64::MAX };
    const KEPT: Rules = Rules { is_kept: true, max_head: 256, max_part: 99 };

    /// Status, body, whether it has ended, and how much is left behind it.
    type Answer = (u16, String, bool, usize);

    /// Decodes what comes in these pieces, with or without the end of the stream.
    fn decoded<'p>(
        rules: Rules,
        pieces: impl IntoIterator<Item = &'p [u8]>,
        hangs_up: bool,
    ) -> Result<Option<Answer>, AnswerError> {
        let mut answers = Answers::new(rules);
        let (mut status, mut body) = (None, Vec::new());
        answers.begin();
        for piece in pieces {
            answers.feed(piece);
            if status.is_none() {
                status = answers.head()?;
            }
            answers.body(&mut body)?;
        }
        if hangs_up && !answers.has_ended() {
            answers.hang_up()?;
        }
        let text = String::from_utf8_lossy(&body).into_owned();
        Ok(status.map(|status| (status, text, answers.has_ended(), answers.raw.len())))
    }

    fn whole(rules: Rules, text: &str) -> Result<Answer, AnswerError> {
        decoded(rules, [text.as_bytes()], true).map(Option::unwrap)
    }

    /// Text; what comes of it on a connection that is closed; what on one that goes on.
    type Case = (&'static str, Result<Answer, &'static str>, Result<Answer, &'static str>);

    fn cases() -> Vec<Case> {
        let fine = |status, body: &str, left| Ok((status, body.to_owned(), true, left));
        let no_end = Err("ended in the middle");
        vec![
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}XX", fine(200, "{}", 2), fine(200, "{}", 2)),
            ("HTTP/1.1 401 No\r\ncontent-length:0\r\n\r\n", fine(401, "", 0), fine(401, "", 0)),
            ("HTTP/1.1 204 No Content\r\n\r\nHTTP", fine(204, "", 4), fine(204, "", 4)),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
                fine(200, "x", 0),
                fine(200, "x", 0),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 7\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
                fine(200, "abc0123456789", 2),
                fine(200, "abc0123456789", 0),
            ),
            (
                "HTTP/1.1 400 No\r\nTransfer-Encoding: chunked\r\n\r\n2 \r\nno\r\n00\r\nA: b\r\nC: d\r\n\r\nHTTP",
                fine(400, "no", 18),
                fine(400, "no", 4),
            ),
            ("HTTP/1.1 200 OK\r\n\r\nto the end", fine(200, "to the end", 0), Err("neither Content-Length nor chunks")),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", fine(200, "", 0), Err("HTTP/1.0, which keeps")),
            ("SSH-2.0-OpenSSH\r\n\r\n", Err("not HTTP"), Err("not HTTP")),
            ("HTTP/2 200\r\n\r\n", Err("not HTTP"), Err("not HTTP")),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", no_end.clone(), no_end.clone()),
            ("HTTP/1.1 200 OK\r\nContent-Le", no_end.clone(), no_end.clone()),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", no_end.clone(), no_end.clone()),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", Err("Content-Length \"-1\""), Err("Content-Length \"-1\"")),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", Err("transfer coding"), Err("transfer coding")),
            ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", no_end.clone(), Err("more than 99 octets")),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n", no_end.clone(), Err("more than 99 octets")),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                Err("without its size"),
                Err("without its size"),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n\r\n",
                Err("without its size"),
                Err("without its size"),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n;x\r\n\r\n",
                Err("without its size"),
                Err("without its size"),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
                Err("without its size"),
                Err("without its size"),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n",
                Err("without its end"),
                Err("without its end"),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", fine(200, "a", 0), no_end),
        ]
    }

    #[test]
    fn answers_are_what_their_rules_let_them_be() {
        for (text, closing, kept) in cases() {
            for (rules, expected) in [(CLOSING, closing), (KEPT, kept)] {
                match (whole(rules, text), expected) {
                    (Ok(answer), Ok(expected)) => assert_eq!(answer, expected, "{text:?}, {rules:?}"),
                    (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{text:?}: {error}"),
                    (got, expected) => panic!("{text:?}, {rules:?}: {got:?} instead of {expected:?}"),
                }
            }
        }
    }

    #[test]
    fn what_has_no_end_is_not_kept() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let long = |text: String| whole(KEPT, &text).unwrap_err();
        assert_eq!(long(format!("HTTP/1.1 200 OK\r\na: {}", "x".repeat(256))), AnswerError::TooLong(256));
        assert_eq!(long(format!("{head}0\r\n{}", "a: b\r\n".repeat(43))), AnswerError::TooLong(256));
        assert_eq!(long(format!("{head}0\r\n{}", "x".repeat(257))), AnswerError::TooLong(256));
        assert_eq!(long(format!("{head}1;{}\r\n", "x".repeat(256))), malformed("a chunk without its size"));
        let fields = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a:b\r\n".repeat(65));
        let rules = Rules { max_head: 4096, ..KEPT };
        assert_eq!(whole(rules, &fields).unwrap_err(), malformed("too many headers"));
    }

    #[test]
    fn one_answer_comes_behind_another() {
        let mut answers = Answers::new(KEPT);
        answers.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nA: b\r\n\r\n");
        answers.feed(b"HTTP/1.1 404 No\r\nContent-Length: 1\r\n\r\nb");
        for (status, text) in [(200, b"a"), (404, b"b")] {
            let mut body = Vec::new();
            assert!(answers.has_ended());
            answers.begin();
            assert_eq!(answers.head(), Ok(Some(status)));
            answers.body(&mut body).unwrap();
            assert_eq!((body.as_slice(), answers.has_ended()), (&text[..], true));
        }
        assert!(answers.raw.is_empty());
    }

    proptest! {
        /// Also with an octet that is another one.
        #[test]
        fn pieces_make_no_difference(
            case in any::<prop::sample::Index>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            slip in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            kept in any::<bool>(),
            hangs_up in any::<bool>(),
        ) {
            let (rules, cases) = (if kept { KEPT } else { CLOSING }, cases());
            let mut octets = case.get(&cases).0.as_bytes().to_vec();
            if let Some((place, octet)) = slip {
                *place.get_mut(&mut octets) = octet;
            }
            let whole = decoded(rules, [octets.as_slice()], hangs_up);
            prop_assert_eq!(&decoded(rules, octets.chunks(1), hangs_up), &whole);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(octets.len())).collect();
            cuts.extend([0, octets.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &octets[pair[0]..pair[1]]);
            prop_assert_eq!(&decoded(rules, pieces, hangs_up), &whole);
        }
    }
}
