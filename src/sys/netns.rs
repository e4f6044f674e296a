//! Network namespaces without names: made by a thread that moves into a new one, kept alive by a descriptor.
//!
//! A namespace belongs to a thread, not to a process. So nothing here ever moves the caller: [`Namespace::run`] does its
//! work on a thread of its own, and [`Namespace::spawn`] moves the child between `fork` and `exec`. A socket stays in the
//! namespace where it was made, whoever uses it later; `run(|| Socket::new(…))` is all that is needed to hold one elsewhere.
//! When the last descriptor, thread and process of a namespace are gone, the kernel removes it with all its interfaces.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;

use rustix::process::{Signal, getgid, getpid, getppid, getuid, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// The calling thread's network namespace, as something that can be opened.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Why a namespace could not be made or entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// We are neither root (`CAP_SYS_ADMIN`) nor in a user namespace of our own.
    #[error("create a network namespace: not permitted; this needs root (CAP_SYS_ADMIN) or a user namespace")]
    Denied,
    /// The kernel refused for another reason.
    #[error("create a network namespace: {0}")]
    Create(#[source] io::Error),
    /// There is nothing at this path, or nothing that we may open.
    #[error("open the network namespace {path}: {reason}")]
    Open {
        /// The path.
        path: String,
        /// The system's reason.
        reason: io::Error,
    },
    /// The namespace exists, but this thread may not move into it.
    #[error("enter the network namespace: {0}")]
    Enter(#[source] io::Error),
    /// No thread to work in.
    #[error("start a thread for the network namespace: {0}")]
    Thread(#[source] io::Error),
    /// The program could not be started, or its process could not enter the namespace.
    #[error("start {program} in the network namespace: {reason}")]
    Spawn {
        /// The program's path.
        program: String,
        /// The system's reason.
        reason: io::Error,
    },
    /// This machine does not let ordinary users make user namespaces, or this process cannot.
    #[error("create a user namespace: {reason}; run this as root instead{advice}")]
    User {
        /// The system's reason.
        reason: io::Error,
        /// The setting that stands in the way, where we know it.
        advice: &'static str,
    },
}

/// A network namespace, alive as long as this value.
#[derive(Debug)]
pub struct Namespace {
    descriptor: OwnedFd,
}

impl Namespace {
    /// Makes a new, empty namespace: its only interface is `lo`, and that is down.
    ///
    /// # Errors
    /// [`NamespaceError::Denied`] without `CAP_SYS_ADMIN`; see [`enter_user_namespace`].
    pub fn create() -> Result<Self, NamespaceError> {
        // The thread ends at once; the descriptor is what keeps its namespace.
        on_own_thread(|| {
            // SAFETY: CLONE_NEWNET moves this thread, which was made for this, to an empty network namespace. It shares its
            // descriptor table with us as before: CLONE_FILES, the dangerous flag, is not set.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(|errno| match errno {
                rustix::io::Errno::PERM => NamespaceError::Denied,
                errno => NamespaceError::Create(errno.into()),
            })?;
            Self::current()
        })
    }

    /// The calling thread's own namespace.
    ///
    /// # Errors
    /// [`NamespaceError::Create`] when `/proc` is not there.
    pub fn current() -> Result<Self, NamespaceError> {
        let file = File::open(OWN_NAMESPACE).map_err(NamespaceError::Create)?;
        Ok(Self { descriptor: file.into() })
    }

    /// The namespace at this path, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`NamespaceError::Open`]. Whether it is a network namespace shows when it is entered.
    pub fn open(path: &Path) -> Result<Self, NamespaceError> {
        let opened = File::open(path);
        let file = opened.map_err(|reason| NamespaceError::Open { path: path.display().to_string(), reason })?;
        Ok(Self { descriptor: file.into() })
    }

    /// Does some work inside the namespace, on a thread of its own, and waits for it. A panic goes on in the caller.
    ///
    /// # Errors
    /// [`NamespaceError`] if the thread cannot be started or cannot enter; the work has then not begun.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        on_own_thread(|| {
            enter(self.as_fd()).map_err(NamespaceError::Enter)?;
            Ok(work())
        })
    }

    /// Starts a program inside the namespace. It is killed when the calling *thread* ends, however that comes about: so
    /// call this from a thread that stays, and wait for the child as usual.
    ///
    /// # Errors
    /// [`NamespaceError::Spawn`].
    pub fn spawn(&self, mut command: Command) -> Result<Child, NamespaceError> {
        let (namespace, parent) = (self.descriptor.as_raw_fd(), getpid());
        let prepare = move || {
            // SAFETY: `self` keeps the descriptor open until `spawn` has returned, and so until the child, which has a copy
            // of the table, has passed this point. The command is consumed, so nobody can run this closure again later.
            enter(unsafe { BorrowedFd::borrow_raw(namespace) })?;
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // If the parent died before the line above, no signal will come.
            if getppid() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ECHILD));
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes three system calls (setns, prctl, getppid) and an error out of a
        // number: no allocation, no lock.
        unsafe { command.pre_exec(prepare) };
        command.spawn().map_err(|reason| {
            let program = command.get_program().to_string_lossy().into_owned();
            NamespaceError::Spawn { program, reason }
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Makes the whole process root of a new user namespace, where it may make network namespaces without being root outside.
/// To be called before the process has a second thread. The caller's own network namespace stays the old one, in which the
/// process gained no rights.
///
/// # Errors
/// [`NamespaceError::User`], with the setting to look at where the kernel or the distribution forbids it.
pub fn enter_user_namespace() -> Result<(), NamespaceError> {
    let fail = |reason: io::Error, advice| NamespaceError::User { reason, advice };
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    // SAFETY: CLONE_NEWUSER changes the credentials of this process alone and leaves memory and descriptors as they are; the
    // kernel refuses it (EINVAL) when there are other threads.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }.map_err(|errno| fail(errno.into(), advice_for(errno)))?;
    // The group map of an ordinary user may be written only once setgroups is given up (CVE-2014-8989).
    let maps = [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))];
    for (file, line) in maps {
        fs::write(format!("/proc/self/{file}"), line)
            .map_err(|reason| fail(reason, "; look at kernel.apparmor_restrict_unprivileged_userns"))?;
    }
    Ok(())
}

fn advice_for(errno: rustix::io::Errno) -> &'static str {
    match errno {
        rustix::io::Errno::PERM | rustix::io::Errno::ACCESS => {
            "; look at kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns"
        }
        rustix::io::Errno::NOSPC | rustix::io::Errno::USERS => "; look at user.max_user_namespaces",
        rustix::io::Errno::INVAL => " (this process has several threads already, or the kernel lacks user namespaces)",
        _ => "",
    }
}

fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
}

/// Runs the work on a thread that exists for nothing else, so that moving the thread moves nobody else.
fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T, NamespaceError> + Send) -> Result<T, NamespaceError> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("netns".to_owned());
        let thread = builder.spawn_scoped(scope, work).map_err(NamespaceError::Thread)?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use crate::sys::netlink::Netlink;

    /// What tells one network namespace from another: `net:[…]`.
    fn identity() -> String {
        fs::read_link(OWN_NAMESPACE).unwrap().to_string_lossy().into_owned()
    }

    #[test]
    fn a_new_namespace_holds_a_loopback_that_is_down_and_nothing_else() {
        let namespace = Namespace::create().expect("needs root");
        let links = namespace.run(|| Netlink::open().unwrap().links().unwrap()).unwrap();
        assert_eq!(links.iter().map(|link| (link.name.as_str(), link.up)).collect::<Vec<_>>(), [("lo", false)]);
    }

    #[test]
    fn work_inside_leaves_the_caller_where_it_was() {
        let before = identity();
        let namespace = Namespace::create().expect("needs root");
        let (first, second) = (namespace.run(identity).unwrap(), namespace.run(identity).unwrap());
        assert_eq!(first, second);
        assert_ne!(first, before);
        assert_eq!(identity(), before);
    }

    #[test]
    fn a_child_process_lives_inside_and_is_killed_with_the_thread_that_started_it() {
        let namespace = Namespace::create().expect("needs root");
        let inside = namespace.run(identity).unwrap();
        let mut readlink = Command::new("/bin/readlink");
        readlink.arg("/proc/self/ns/net").stdout(Stdio::piped());
        let output = namespace.spawn(readlink).unwrap().wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), inside);

        let mut child = thread::scope(|scope| {
            let start = || {
                let mut sleep = Command::new("/bin/sleep");
                sleep.arg("60");
                namespace.spawn(sleep).unwrap()
            };
            scope.spawn(start).join().unwrap()
        });
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let namespace = Namespace::create().expect("needs root");
        let error = namespace.spawn(Command::new("/nonexistent/program")).unwrap_err();
        assert!(error.to_string().starts_with("start /nonexistent/program in the network namespace: "), "{error}");
    }

    #[test]
    fn a_panic_inside_goes_on_outside() {
        let namespace = Namespace::create().expect("needs root");
        let outcome = std::panic::catch_unwind(|| namespace.run(|| panic!("inside")));
        assert_eq!(*outcome.unwrap_err().downcast::<&str>().unwrap(), "inside");
    }

    #[test]
    fn a_process_with_threads_is_told_why_it_cannot_have_a_user_namespace() {
        // The test runner has threads, so the kernel must refuse, and nothing may have changed.
        let error = enter_user_namespace().unwrap_err();
        assert!(error.to_string().contains("several threads"), "{error}");
        assert!(Namespace::create().is_ok());
    }
}
