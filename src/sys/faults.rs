//! Kernels that refuse things, for tests: what no kernel at hand can be made to refuse.
//!
//! Debug builds read the file that `UNDERPASS_FAULTS` names, each time that they come by a place where a kernel may refuse: the
//! words in it are the faults in force, so a test can end them while an agent runs. Release builds read nothing.

/// What can be made to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// TUNSETOFFLOAD refuses UDP's flags, as before Linux 6.2.
    TunNoUdp,
    /// TUNSETOFFLOAD refuses all flags.
    TunNoTcp,
    /// Writing a super-packet of TCP gives EINVAL.
    TunWriteTcp,
    /// Writing a super-packet of UDP gives EINVAL.
    TunWriteUdp,
    /// A train of datagrams gives EIO.
    TrainEio,
    /// A train of datagrams gives EINVAL.
    TrainEinval,
    /// A train of more than 64 datagrams gives EINVAL, as before Linux 6.9.
    Train64,
}

impl Fault {
    /// Its word in the file.
    #[cfg(debug_assertions)]
    const fn word(self) -> &'static str {
        match self {
            Self::TunNoUdp => "tun-no-udp",
            Self::TunNoTcp => "tun-no-tcp",
            Self::TunWriteTcp => "tun-write-tcp",
            Self::TunWriteUdp => "tun-write-udp",
            Self::TrainEio => "train-eio",
            Self::TrainEinval => "train-einval",
            Self::Train64 => "train-64",
        }
    }

    /// Whether it is in force.
    #[cfg(debug_assertions)]
    #[must_use]
    pub fn is_on(self) -> bool {
        is_on(self.word())
    }

    /// Whether it is in force: never.
    #[cfg(not(debug_assertions))]
    #[must_use]
    pub const fn is_on(self) -> bool {
        false
    }
}

/// Whether the fault of this word is in force, for steps that have many places to fail.
#[cfg(debug_assertions)]
#[must_use]
pub fn is_on(word: &str) -> bool {
    use std::ffi::OsString;
    use std::sync::OnceLock;
    static FILE: OnceLock<Option<OsString>> = OnceLock::new();
    let Some(file) = FILE.get_or_init(|| std::env::var_os("UNDERPASS_FAULTS")) else { return false };
    std::fs::read_to_string(file).is_ok_and(|words| words.split_whitespace().any(|known| known == word))
}

/// Whether the fault of this word is in force: never.
#[cfg(not(debug_assertions))]
#[must_use]
pub const fn is_on(_word: &str) -> bool {
    false
}
