//! The journal as a file: locked, read, appended to, and now and then written anew.
//!
//! The lock is flock(2) on the file itself. Compaction gives the name to another file, so who has waited for the lock looks whether
//! it got the file that has the name now, and begins again if not.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::record::{self, BadLine, Record, VERSION};
use super::{IpamError, LOCK_PATIENCE};
use crate::sys::file::{self, Locked};

/// Largest journal in octets that is read: a /16 full of leases fits several times.
const MAX_JOURNAL: u64 = 256 * 1024 * 1024;

/// What somebody wants with the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// To read it.
    Look,
    /// To add to it; it is made if it is not there.
    Change,
}

/// What was in it.
#[derive(Debug)]
pub(super) struct Contents {
    pub records: Vec<Record>,
    /// Octets up to the end of the last whole line.
    pub whole: u64,
    /// Octets behind that: somebody was killed while it wrote, and never answered.
    pub tail: u64,
    /// The first line that nobody wrote like that, and what is wrong with it.
    pub damage: Option<(usize, &'static str)>,
}

/// The locked file.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: Locked,
    len: u64,
    /// Lines in it.
    count: usize,
    compact_over: u64,
    /// A write failed: what stands in the file is not known.
    broken: bool,
}

impl Journal {
    pub(super) fn open(path: &Path, access: Access, compact_over: u64) -> Result<(Self, Contents), IpamError> {
        let failed = |error| IpamError::Io(path.to_owned(), error);
        let file = lock(path, access)?;
        let len = file.metadata().map_err(failed)?.len();
        if len > MAX_JOURNAL {
            return Err(failed(io::Error::other(format!("expected a journal of at most {MAX_JOURNAL} octets"))));
        }
        let mut octets = Vec::with_capacity(len as usize);
        (&*file).read_to_end(&mut octets).map_err(failed)?;
        let contents = read(&octets).ok_or_else(|| IpamError::Newer(path.to_owned()))?;
        let count = contents.records.len();
        let journal = Self { path: path.to_owned(), file, len, count, compact_over, broken: false };
        Ok((journal, contents))
    }

    fn failed(&self, error: io::Error) -> IpamError {
        IpamError::Io(self.path.clone(), error)
    }

    /// Cuts off what a killed process left behind the last whole line.
    pub(super) fn cut_tail(&mut self, whole: u64) -> Result<(), IpamError> {
        if self.len > whole {
            self.file.set_len(whole).map_err(|error| self.failed(error))?;
            self.len = whole;
        }
        Ok(())
    }

    /// Adds a record. It is on disk when this returns without error.
    pub(super) fn append(&mut self, record: &Record) -> Result<(), IpamError> {
        if self.broken {
            return Err(self.failed(io::Error::other("an earlier write to the journal failed")));
        }
        let first = self.len == 0;
        let mut octets = if first { record::emit(&Record::Journal { version: VERSION }) } else { Vec::new() };
        octets.extend(record::emit(record));
        let mut file: &File = &self.file;
        let written = file.seek(SeekFrom::Start(self.len)).and_then(|_| file.write_all(&octets));
        if let Err(error) = written.and_then(|()| self.file.sync_data()) {
            // The next who opens it cuts off what may stand there; we cannot know, so we write no more.
            self.broken = true;
            let _ = self.file.set_len(self.len);
            return Err(self.failed(error));
        }
        self.len += octets.len() as u64;
        self.count += 1;
        // The name must be on disk as well, or the file is lost with the power.
        if first { self.sync_name() } else { Ok(()) }
    }

    fn sync_name(&self) -> Result<(), IpamError> {
        file::sync_names(&self.path).map_err(|error| self.failed(error))
    }

    /// Writes the journal anew if it is large and most of it is history. About `size` records would be left.
    pub(super) fn compact(&mut self, size: usize, records: &dyn Fn() -> Vec<Record>) -> Result<(), IpamError> {
        // To make the records of many leases takes milliseconds, so that is not tried in vain.
        if self.len <= self.compact_over || size > self.count / 2 {
            return Ok(());
        }
        let records = records();
        let octets: u64 = records.iter().map(|record| record::emit(record).len() as u64).sum();
        if octets > self.len / 2 { Ok(()) } else { self.rewrite(&records) }
    }

    /// Where the next journal is written before it has the name.
    fn draft(&self) -> PathBuf {
        self.path.with_extension("journal.new")
    }

    /// What a killed process left there: nobody who lives writes it while we hold the lock.
    pub(super) fn left_draft(&self) -> Option<PathBuf> {
        Some(self.draft()).filter(|draft| draft.symlink_metadata().is_ok())
    }

    /// Puts a file with these records in the journal's place. Whoever reads sees the old one or the new one, whole.
    pub(super) fn rewrite(&mut self, records: &[Record]) -> Result<(), IpamError> {
        let mut octets = record::emit(&Record::Journal { version: VERSION });
        records.iter().for_each(|record| octets.extend(record::emit(record)));
        let draft = self.draft();
        let replace = || {
            // Only who holds the lock writes drafts: what lies there was left by a killed process.
            let _ = fs::remove_file(&draft);
            let file = options().create_new(true).open(&draft)?;
            // Locked before it has the name, so that nobody else has it first.
            let file = Locked::exclusive(file, Duration::ZERO)?;
            (&*file).write_all(&octets)?;
            file.sync_all()?;
            fs::rename(&draft, &self.path)?;
            Ok(file)
        };
        self.file = replace().map_err(|error| self.failed(error))?;
        (self.len, self.count) = (octets.len() as u64, records.len());
        self.sync_name()
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// Opens the file that has the name, and locks it.
fn lock(path: &Path, access: Access) -> Result<Locked, IpamError> {
    let failed = |error| IpamError::Io(path.to_owned(), error);
    let mut folder_made = false;
    loop {
        let opened = match access {
            Access::Look => file::open(path),
            Access::Change => options().create(true).open(path).and_then(file::ordinary),
        };
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound && access == Access::Change && !folder_made => {
                folder_made = true;
                let folder = path.parent().unwrap_or(Path::new("."));
                file::make_folder(folder, 0o700).map_err(failed)?;
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        let locked = match access {
            Access::Look => Locked::shared(file, LOCK_PATIENCE),
            Access::Change => Locked::exclusive(file, LOCK_PATIENCE),
        };
        match locked {
            Ok(file) if has_name(&file, path) => return Ok(file),
            // Somebody put another in its place meanwhile.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(IpamError::Locked(path.to_owned())),
            Err(error) => return Err(failed(error)),
        }
    }
}

fn has_name(file: &File, path: &Path) -> bool {
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(ours), Ok(named)) => id(ours) == id(named),
        _ => false,
    }
}

/// The records in a file; none if a later version wrote some.
fn read(octets: &[u8]) -> Option<Contents> {
    let whole = octets.iter().rposition(|&octet| octet == b'\n').map_or(0, |end| end + 1);
    let mut contents =
        Contents { records: Vec::new(), whole: whole as u64, tail: (octets.len() - whole) as u64, damage: None };
    let lines = octets[..whole].split_inclusive(|&octet| octet == b'\n');
    for (index, line) in lines.enumerate() {
        let what = match record::parse(&line[..line.len() - 1]) {
            Ok(Record::Journal { .. }) if index == 0 => continue,
            Ok(Record::Journal { .. }) => "a second beginning",
            Ok(record) => {
                contents.records.push(record);
                if index > 0 {
                    continue;
                }
                "no beginning"
            }
            Err(BadLine::Unknown) => return None,
            Err(BadLine::Damaged) => "the checksum is wrong",
        };
        contents.damage = contents.damage.or(Some((index + 1, what)));
    }
    Some(contents)
}
