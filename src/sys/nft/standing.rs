//! Whether what was said to the kernel still stands: any program may flush all tables, and firewalls' services do so when they start.

use super::message::{Attributes, Message};
use super::table::Family;
use super::{Fault, GuardError, TABLE_NAME, explain, open};

/// Message types of nf_tables, and the kernel's names of attributes without `NFTA_`.
const GET_TABLE: u16 = 1;
const GET_GENERATION: u16 = 16;
const TABLE_HANDLE: u16 = 4;
const GEN_ID: u16 = 1;

/// The number of the last change of any table in the calling thread's network namespace. It costs less than to look at one of them.
///
/// # Errors
/// [`GuardError`].
pub(crate) fn generation() -> Result<u32, GuardError> {
    let action = || "ask for the generation of nftables".to_owned();
    let answer = open(action)?.request(Message::new(GET_GENERATION, 0, Attributes::default()), 0);
    let answer = answer.map_err(|fault| explain(fault, action))?;
    let id = answer.first().and_then(|message| message.attribute(GEN_ID));
    Ok(id.and_then(|octets| octets.try_into().ok()).map_or(0, u32::from_be_bytes))
}

/// The number that the kernel gave a table when it was made: no other table ever has it. None if there is no such table.
///
/// # Errors
/// [`GuardError`].
pub(crate) fn handle(family: Family, table: &str) -> Result<Option<u64>, GuardError> {
    let action = || format!("look for the nftables table {table}");
    let message = Message::new(GET_TABLE, family.code(), Attributes::default().text(TABLE_NAME, table));
    match open(action)?.request(message, 0) {
        Ok(answer) => {
            let handle = answer.first().and_then(|message| message.attribute(TABLE_HANDLE));
            Ok(handle.and_then(|octets| octets.try_into().ok()).map(u64::from_be_bytes))
        }
        Err(Fault::Refused { reason, .. }) if reason.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(fault) => Err(explain(fault, action)),
    }
}
