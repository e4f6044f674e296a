//! Files as others may find them: only ordinary ones are read, and never without a bound; what is written is there as a whole and
//! on disk, or not at all; and who changes what others change as well locks it.
//!
//! A file is opened first and judged by what was opened, so nothing can be exchanged in between; FIFOs and devices do not make us wait.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::model::Secret;

/// Between two tries for a lock, at first and at most: most are held for one write to the disk.
const LOCK_PAUSE: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(5));

/// Longer than any process takes from a file's first octet to its name.
const DRAFT_LIFE: Duration = Duration::from_secs(60);

/// Opens an ordinary file.
///
/// # Errors
/// When it is not there, not readable or no ordinary file.
pub fn open(path: &Path) -> io::Result<File> {
    // A FIFO without a writer would hold us up.
    ordinary(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?)
}

/// The file, if it is an ordinary one.
///
/// # Errors
/// When it is none.
pub fn ordinary(file: File) -> io::Result<File> {
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(io::Error::other("not an ordinary file"));
    }
    Ok(file)
}

/// Everything up to so many octets, in memory that wipes itself.
///
/// # Errors
/// What the file system says.
pub fn read_bounded(file: &File, max: usize) -> io::Result<Secret> {
    // Reserved at once: a vector that grows leaves copies behind.
    let len = usize::try_from(file.metadata()?.len()).unwrap_or(max).min(max);
    let mut octets = Vec::with_capacity(len + 1);
    file.take(max as u64).read_to_end(&mut octets)?;
    Ok(Secret::new(octets))
}

/// By what a file can be told from what it was before, without reading it: device, inode, length and time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    place: (u64, u64),
    length: u64,
    changed: (i64, i64),
}

/// The stamp of a file; none if there is no file. Whoever reads it takes this before.
#[must_use]
pub fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        place: (metadata.dev(), metadata.ino()),
        length: metadata.len(),
        changed: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

/// Makes a folder with everything above it, where it is not there.
///
/// # Errors
/// What the file system says.
pub fn make_folder(folder: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(folder)
}

/// Puts a file where none is.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`], or what else the file system says.
pub fn create(path: &Path, octets: &[u8], mode: u32) -> io::Result<()> {
    // link(2) fails where rename(2) would replace.
    place(path, |draft| write(draft, octets, mode), |draft, path| fs::hard_link(draft, path))
}

/// Puts a file in the place of another, if there is one.
///
/// # Errors
/// What the file system says. Then the old one is still there, or the new one, whole.
pub fn replace(path: &Path, octets: &[u8], mode: u32) -> io::Result<()> {
    place(path, |draft| write(draft, octets, mode), |draft, path| fs::rename(draft, path))
}

/// Puts a link in the place of another, if there is one.
///
/// # Errors
/// As in [`replace`].
pub fn relink(link: &Path, target: &Path) -> io::Result<()> {
    place(link, |draft| symlink(target, draft), |draft, link| fs::rename(draft, link))
}

/// Brings to disk which names there are beside this one: what was made, renamed or removed.
///
/// # Errors
/// What the file system says.
pub fn sync_names(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// A file that is locked by flock(2), until this is dropped.
#[derive(Debug)]
pub struct Locked(File);

impl Locked {
    /// Locks it for nobody else, and waits at most so long for others.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] if they took longer, or what else the file system says.
    pub fn exclusive(file: File, patience: Duration) -> io::Result<Self> {
        Self::within(file, patience, |file| Ok(file.try_lock()?))
    }

    /// The same beside others who lock it by this.
    ///
    /// # Errors
    /// As in [`exclusive`](Self::exclusive).
    pub fn shared(file: File, patience: Duration) -> io::Result<Self> {
        Self::within(file, patience, |file| Ok(file.try_lock_shared()?))
    }

    fn within(file: File, patience: Duration, lock: fn(&File) -> io::Result<()>) -> io::Result<Self> {
        let deadline = Instant::now() + patience;
        let mut pause = LOCK_PAUSE.0;
        loop {
            match lock(&file) {
                Ok(()) => return Ok(Self(file)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                    thread::sleep(pause);
                    pause = (pause * 2).min(LOCK_PAUSE.1);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    /// Unlocks by word, because closing is not enough: a child between fork and exec holds the same open file.
    fn drop(&mut self) {
        // What cannot be unlocked goes with the last holder of the file.
        let _ = self.0.unlock();
    }
}

/// Makes something under a hidden name, and gives it its own.
fn place(
    path: &Path,
    make: impl FnOnce(&Path) -> io::Result<()>,
    name: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let draft = draft(path);
    // What a killed process of this number left.
    let _ = fs::remove_file(&draft);
    let placed = make(&draft).and_then(|()| name(&draft, path));
    // A renamed one is gone.
    let _ = fs::remove_file(&draft);
    placed?;
    sync_names(path)
}

/// A hidden name beside it, of this process.
fn draft(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}

/// What processes left in a folder that were killed while they placed something: hidden names, as `draft` makes them, which are
/// older than anybody takes to write a file. Whoever is slower after all fails, and leaves the old file.
///
/// # Errors
/// What the file system says.
pub fn old_drafts(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let is_draft = |name: &str| {
        let number = name.strip_prefix('.').and_then(|name| name.rsplit_once('.')).filter(|(name, _)| !name.is_empty());
        number.is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
    };
    let is_old = |path: &Path| {
        let changed = fs::symlink_metadata(path).and_then(|metadata| metadata.modified()).ok();
        changed.and_then(|changed| changed.elapsed().ok()).is_some_and(|age| age >= DRAFT_LIFE)
    };
    let mut found: Vec<PathBuf> = fs::read_dir(folder)?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()))
        .filter(|entry| entry.file_name().to_str().is_some_and(is_draft))
        .map(|entry| entry.path())
        .filter(|path| is_old(path))
        .collect();
    found.sort();
    Ok(found)
}

/// A new file with its octets on disk.
fn write(path: &Path, octets: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(octets)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_the_old_one_or_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        // Somebody of our number was killed here.
        fs::write(draft(&path), "half").unwrap();
        replace(&path, b"one", 0o600).unwrap();
        assert_eq!((fs::read(&path).unwrap(), fs::metadata(&path).unwrap().mode() & 0o7777), (b"one".to_vec(), 0o600));
        assert_eq!(create(&path, b"two", 0o600).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        replace(&path, b"two", 0o640).unwrap();
        assert_eq!((fs::read(&path).unwrap(), fs::metadata(&path).unwrap().mode() & 0o7777), (b"two".to_vec(), 0o640));
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn what_cannot_be_placed_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"x", 0o600).is_err());
        assert!(relink(&path, Path::new("x")).is_err());
        assert!(replace(&folder.path().join("none/file"), b"x", 0o600).is_err());
        assert_eq!(names(folder.path()), ["taken"]);
    }

    #[test]
    fn old_drafts_are_found_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let old = std::time::SystemTime::now() - 2 * DRAFT_LIFE;
        for name in [".host.key.123", ".a.1", ".hidden", ".b.x1", "c.7", "..8", ".d."] {
            let file = File::create(path(name)).unwrap();
            file.set_modified(old).unwrap();
        }
        fs::create_dir(path(".folder.9")).unwrap();
        fs::write(path(".young.10"), "").unwrap();
        assert_eq!(old_drafts(folder.path()).unwrap(), [path(".a.1"), path(".host.key.123")]);
    }

    #[test]
    fn links_lead_where_they_are_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        for target in ["one", "two"] {
            relink(&link, Path::new(target)).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        }
        assert_eq!(names(folder.path()), ["link"]);
    }

    #[test]
    fn a_lock_holds_until_it_is_dropped() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || OpenOptions::new().read(true).write(true).open(file.path()).unwrap();
        let held = Locked::exclusive(open(), Duration::ZERO).unwrap();
        // As if a child had been forked meanwhile.
        let _inherited = held.try_clone().unwrap();
        let kind = |locked: io::Result<Locked>| locked.unwrap_err().kind();
        assert_eq!(kind(Locked::exclusive(open(), Duration::from_millis(1))), ErrorKind::WouldBlock);
        assert_eq!(kind(Locked::shared(open(), Duration::ZERO)), ErrorKind::WouldBlock);
        let late = open();
        let waiting = thread::spawn(|| Locked::shared(late, Duration::from_secs(60)));
        drop(held);
        let _one = waiting.join().unwrap().unwrap();
        let _other = Locked::shared(open(), Duration::ZERO).unwrap();
        assert_eq!(kind(Locked::exclusive(open(), Duration::ZERO)), ErrorKind::WouldBlock);
    }

    #[test]
    fn only_ordinary_files_are_read_and_not_beyond_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(open(folder.path()).unwrap_err().kind(), ErrorKind::IsADirectory);
        assert!(open(Path::new("/dev/zero")).unwrap_err().to_string().contains("not an ordinary file"));
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(open(&fifo).unwrap_err().to_string().contains("not an ordinary file"));
        let path = folder.path().join("file");
        fs::write(&path, "0123456789").unwrap();
        for (max, text) in [(4, "0123"), (10, "0123456789"), (99, "0123456789")] {
            assert_eq!(read_bounded(&open(&path).unwrap(), max).unwrap().expose(), text.as_bytes());
        }
    }
}
