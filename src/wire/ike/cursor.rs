//! A reader that cannot pass the end of its slice: every length on the wire is checked here and nowhere else.

use super::ParseError;

/// What is left of one structure, and that structure's name for error messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Cursor<'a> {
    /// Reads `octets`, which are a `what`.
    pub(super) const fn new(octets: &'a [u8], what: &'static str) -> Self {
        Self { rest: octets, what }
    }

    /// Whether everything was read.
    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `count` octets.
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], ParseError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(ParseError::Truncated(self.what))?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next octets as an array.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(ParseError::Truncated(self.what))?;
        self.rest = rest;
        Ok(*taken)
    }

    /// One octet.
    pub(super) fn u8(&mut self) -> Result<u8, ParseError> {
        self.array().map(|[octet]| octet)
    }

    /// Two octets in network order.
    pub(super) fn u16(&mut self) -> Result<u16, ParseError> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four octets in network order.
    pub(super) fn u32(&mut self) -> Result<u32, ParseError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight octets in network order.
    pub(super) fn u64(&mut self) -> Result<u64, ParseError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Refuses octets that are left over.
    pub(super) const fn end(&self) -> Result<(), ParseError> {
        if self.rest.is_empty() { Ok(()) } else { Err(ParseError::Invalid(self.what)) }
    }

    /// A structure that starts with its own length, as proposals, transforms and selectors do: `before` octets, then two of
    /// length. The result is all of it, and at least `least` octets long.
    pub(super) fn counted(&mut self, before: usize, least: usize, what: &'static str) -> Result<Cursor<'a>, ParseError> {
        let field = self.rest.get(before..before + 2).ok_or(ParseError::Truncated(what))?;
        let length = usize::from(u16::from_be_bytes([field[0], field[1]]));
        if length < least {
            return Err(ParseError::Invalid(what));
        }
        let octets = self.take(length).map_err(|_| ParseError::Truncated(what))?;
        Ok(Cursor::new(octets, what))
    }
}

/// Writes the length of what stands in `out` from `start` into its own field of two octets at `start + field`.
///
/// No message of ours comes near the limit; one that did would announce a length that its peer refuses.
pub(super) fn fill_length(out: &mut [u8], start: usize, field: usize) {
    let length = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    out[start + field..start + field + 2].copy_from_slice(&length.to_be_bytes());
}
