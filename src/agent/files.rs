//! The files of an agent: its configuration, the keys that it names, and the host's own key.

use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::{self, Config, DriverSource, KeyFile, Placed, Report, Surroundings};
use crate::crypto::{KeyFormatError, SigningKey};
use crate::model::Secret;
use crate::network::{self, Driver};
use crate::store::etcd::Credentials;
use crate::sys::file;

/// The host's private key in the state directory.
pub const HOST_KEY: &str = "host.key";

/// Largest key file in octets.
const MAX_KEY_FILE: usize = 16 * 1024;

/// Reads the configuration in a file, and the key files that it names.
///
/// # Errors
/// When the file itself cannot be read; what is wrong inside is in the report, and then there is no configuration.
pub fn load_config(file: &Path) -> io::Result<(Option<Config>, Report)> {
    Ok(parse_config(file, &read_config(file)?))
}

/// Reads a configuration or compose file, up to the size that the parsers take and one octet: they say that it is too large.
///
/// # Errors
/// When it is not there, not readable or no ordinary file.
pub fn read_config(path: &Path) -> io::Result<Secret> {
    file::read_bounded(&file::open(path)?, config::MAX_FILE + 1)
}

/// The configuration in what [`read_config`] has read, with the key files that it names.
#[must_use]
pub fn parse_config(file: &Path, octets: &Secret) -> (Option<Config>, Report) {
    let (config, mut report) = config::parse(file, octets.expose(), &surroundings());
    let Some(mut config) = config else { return (None, report) };
    config::resolve_keys(&mut config, &mut report, &read_key_file);
    let _ = load_credentials(&config, &mut report);
    let _ = drivers(&config, &mut report);
    (Some(config).filter(|_| !report.has_errors()), report)
}

/// The network drivers in a compose file that [`read_config`] has read, with the environment's variables.
#[must_use]
pub fn parse_compose(file: &Path, octets: &Secret, strict: bool) -> (Vec<Driver>, Report) {
    network::parse(file, octets.expose(), &|name| std::env::var(name).ok(), strict)
}

/// The same, if it is a compose file and not an agent's configuration.
#[must_use]
pub fn parse_if_compose(file: &Path, octets: &Secret, strict: bool) -> Option<(Vec<Driver>, Report)> {
    network::parse_if_compose(file, octets.expose(), &|name| std::env::var(name).ok(), strict)
}

/// Reads the files that `store` names, if it is etcd. What is wrong with them goes into the report.
pub(super) fn load_credentials(config: &Config, report: &mut Report) -> Credentials {
    let mut credentials = Credentials::default();
    let Some(config::Store::Etcd(settings)) = &config.store else { return credentials };
    let mut read = |path: &Placed<PathBuf>, is_secret: bool| match read_key_file(&path.value) {
        Err(error) => {
            path.error(report, format!("expected a readable file, got {}: {error}", path.value.display()));
            None
        }
        Ok(file) => match config::check_key_file(&path.value, &file).err().filter(|_| is_secret) {
            Some(why) => {
                path.error(report, why);
                None
            }
            None => Some(file.contents),
        },
    };
    let ca_file = settings.ca_file.as_ref();
    credentials.authorities = ca_file.and_then(|path| read(path, false)).map(|octets| octets.expose().to_vec());
    if let Some(files) = &settings.certificate {
        let (chain, key) = (read(&files.chain, false), read(&files.key, true));
        credentials.certificate = chain.zip(key).map(|(chain, key)| (chain.expose().to_vec(), key));
    }
    if let Some((user, path)) = &settings.login {
        let password = read(path, true);
        // An editor's line end is no part of it.
        let trimmed = |octets: Secret| Secret::copy_of(octets.expose().trim_ascii_end());
        credentials.login = password.map(|password| (user.clone(), trimmed(password)));
    }
    if let (Err(error), Some(path)) = (credentials.tls(), ca_file) {
        path.error(report, error.to_string());
    }
    credentials
}

/// The network drivers that a configuration names, with the environment's variables. What is wrong with them goes into the report, which
/// is the configuration's.
#[must_use]
pub fn drivers(config: &Config, report: &mut Report) -> Vec<Driver> {
    let variables = |name: &str| std::env::var(name).ok();
    let mut drivers: Vec<(PathBuf, Driver)> = Vec::new();
    for source in &config.drivers {
        match source {
            DriverSource::Block(block) => {
                let found = network::parse_block(block, &variables, report);
                drivers.extend(found.into_iter().map(|driver| (report.file.clone(), driver)));
            }
            DriverSource::File(path) => match read_config(&path.value) {
                Ok(octets) => {
                    let (found, own) = parse_compose(&path.value, &octets, false);
                    report.include(own);
                    drivers.extend(found.into_iter().map(|driver| (path.value.clone(), driver)));
                }
                Err(error) => {
                    let message = format!("expected a readable compose file, got {}: {error}", path.value.display());
                    report.error(path.line, &*path.key, message);
                }
            },
        }
    }
    network::check_together(&drivers, report);
    let folder = config.cni.conf_dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    for (file, driver) in &drivers {
        let name = driver.default_network.as_ref().map(|network| format!("{}.d", network.name));
        if name == Some(folder.clone()) {
            let mut own = Report::new(file);
            let message = format!("the network's own folder would be {folder}, which is the last part of cni.conf_dir");
            own.error(driver.line, "default_network.name", message);
            report.include(own);
        }
    }
    report.sort();
    drivers.into_iter().map(|(_, driver)| driver).collect()
}

/// The hostname and what the environment says.
fn surroundings() -> Surroundings {
    Surroundings {
        hostname: rustix::system::uname().nodename().to_str().ok().map(str::to_owned),
        cattle_agent_ip: std::env::var("CATTLE_AGENT_IP").ok(),
    }
}

/// Reads a key file with what must be known to judge it.
///
/// # Errors
/// When it is not there, not readable, no ordinary file, or too large for a key.
fn read_key_file(path: &Path) -> io::Result<KeyFile> {
    let file = file::open(path)?;
    let metadata = file.metadata()?;
    let owned = metadata.uid() == 0 || metadata.uid() == rustix::process::geteuid().as_raw();
    let contents = file::read_bounded(&file, MAX_KEY_FILE + 1)?;
    if contents.len() > MAX_KEY_FILE {
        return Err(io::Error::other(format!("a key file has at most {MAX_KEY_FILE} octets")));
    }
    Ok(KeyFile { mode: metadata.mode(), owned, contents })
}

/// Why there is no host key.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// It was never made.
    #[error("there is no host key at {}: make one with `underpass key generate`", .0.display())]
    Missing(PathBuf),
    /// There is one, and it was not to be replaced.
    #[error(
        "there is a host key at {} already: --force replaces it, and then every peer that pins the old one refuses this host",
        .0.display()
    )]
    Present(PathBuf),
    /// There is no key to change to.
    #[error("there is no next host key at {}: make one with `underpass key rotate`", .0.display())]
    NoNext(PathBuf),
    /// The last change is still under way.
    #[error("the last change of the host key is not finished, {} is there: end it with `underpass key rotate --finish`", .0.display())]
    Unfinished(PathBuf),
    /// No change is under way.
    #[error("no change of the host key is to be finished: there is no {}", .0.display())]
    Finished(PathBuf),
    /// Somebody else could have read it.
    #[error("{0}")]
    Unsafe(String),
    /// The file holds something else.
    #[error("{}: {}", .0.display(), .1)]
    Format(PathBuf, KeyFormatError),
    /// The file system refused.
    #[error("{}: {}", .0.display(), .1)]
    Io(PathBuf, io::Error),
}

/// Reads the host's key.
///
/// # Errors
/// See [`HostKeyError`].
pub fn load_host_key(state_dir: &Path) -> Result<SigningKey, HostKeyError> {
    load_key(state_dir.join(HOST_KEY))
}

/// The same for another file.
pub(super) fn load_key(path: PathBuf) -> Result<SigningKey, HostKeyError> {
    let file = read_key_file(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => HostKeyError::Missing(path.clone()),
        _ => HostKeyError::Io(path.clone(), error),
    })?;
    config::check_key_file(&path, &file).map_err(|why| HostKeyError::Unsafe(format!("{}: {why}", path.display())))?;
    SigningKey::from_pkcs8_pem(file.contents.expose()).map_err(|error| HostKeyError::Format(path, error))
}

/// Makes a host key, and the state directory if need be.
///
/// The key is whole and on disk before it gets its name, and never replaces another unless it may.
///
/// # Errors
/// See [`HostKeyError`].
pub fn generate_host_key(state_dir: &Path, replace: bool) -> Result<SigningKey, HostKeyError> {
    make_key(state_dir, HOST_KEY, replace)
}

/// The same for another file in the state directory.
pub(super) fn make_key(state_dir: &Path, name: &str, replace: bool) -> Result<SigningKey, HostKeyError> {
    let path = state_dir.join(name);
    let failed = |error| HostKeyError::Io(path.clone(), error);
    file::make_folder(state_dir, 0o700).map_err(failed)?;
    if !replace && path.symlink_metadata().is_ok() {
        return Err(HostKeyError::Present(path));
    }
    let key = SigningKey::generate(&mut super::OsRng);
    let octets = key.to_pkcs8_pem();
    let put = if replace { file::replace } else { file::create };
    put(&path, octets.expose(), 0o600).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => HostKeyError::Present(path.clone()),
        _ => failed(error),
    })?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sys::testing::allocations;

    #[test]
    fn a_host_key_is_private_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        assert!(matches!(load_host_key(&state), Err(HostKeyError::Missing(_))));
        let key = generate_host_key(&state, false).unwrap();
        assert_eq!(load_host_key(&state).unwrap().verifying_key(), key.verifying_key());
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&state), mode(&state.join(HOST_KEY))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_host_key_is_replaced_only_on_demand() {
        let folder = tempfile::tempdir().unwrap();
        let old = generate_host_key(folder.path(), false).unwrap().verifying_key();
        assert!(matches!(generate_host_key(folder.path(), false), Err(HostKeyError::Present(_))));
        assert_eq!(load_host_key(folder.path()).unwrap().verifying_key(), old);
        let new = generate_host_key(folder.path(), true).unwrap().verifying_key();
        assert_ne!(new, old);
        assert_eq!(load_host_key(folder.path()).unwrap().verifying_key(), new);
    }

    #[test]
    fn a_host_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        generate_host_key(folder.path(), false).unwrap();
        let path = folder.path().join(HOST_KEY);
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = load_host_key(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with(&format!("got mode 0640: chmod 600 {}", path.display())), "{error}");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "-----BEGIN nonsense").unwrap();
        assert!(matches!(load_host_key(folder.path()), Err(HostKeyError::Format(..))));
    }

    #[test]
    fn only_ordinary_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load_config(folder.path()).unwrap_err().kind(), ErrorKind::IsADirectory);
        assert!(load_config(Path::new("/dev/zero")).unwrap_err().to_string().contains("not an ordinary file"));
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(load_config(&fifo).unwrap_err().to_string().contains("not an ordinary file"));
        let large = folder.path().join("large.psk");
        fs::write(&large, vec![b'x'; MAX_KEY_FILE + 1]).unwrap();
        assert!(read_key_file(&large).unwrap_err().to_string().contains("at most 16384 octets"));
    }

    /// Files that are made to be expensive: a megabyte of each costs no more than a megabyte must. What is counted does not depend on
    /// how busy the machine is.
    #[test]
    fn expensive_files_are_cheap() {
        let size = config::MAX_FILE - 100;
        let peers = (0..4000)
            .map(|n| format!("  - {{name: p{n}, psk_file: a, remote_blocks: [10.{}.{}.0/24]}}\n", n / 256, n % 256));
        let blocks = vec!["10.0.0.0/8"; 250].join(",");
        let files = [
            "[".repeat(size),
            "{".repeat(size),
            "- ".repeat(size / 2),
            "? ".repeat(size / 2),
            "a: ".repeat(size / 3),
            "x".repeat(size),
            format!("\"{}", "x".repeat(size)),
            (0..size / 12).map(|n| format!("k{n}: v\n")).collect(),
            format!("x-a: [{}]", "a,".repeat(size / 2)),
            format!("overlay: {{blocks: [10.255.0.0/16]}}\npeers:\n{}", peers.collect::<String>()),
            format!(
                "overlay: {{blocks: [{blocks}]}}\npeers:\n{}",
                format!("  - {{remote_blocks: [{blocks}]}}\n").repeat(370)
            ),
            "&a [*a,".repeat(size / 7),
            " ".repeat(size),
            "\n".repeat(size),
            "#".repeat(size),
        ];
        let nobody = Surroundings { hostname: None, cattle_agent_ip: None };
        for file in files {
            let before = allocations();
            let (_, report) = config::parse(Path::new("u.yaml"), file.as_bytes(), &nobody);
            let (_, drivers) = network::parse(Path::new("r.yml"), file.as_bytes(), &|_| None, false);
            let asked = allocations() - before;
            assert!(report.messages.len() <= 100 && drivers.messages.len() <= 100);
            // What grows with the square of a million octets asks for memory a thousand times as often.
            assert!(asked <= 16 * size as u64, "{asked} times for memory: {:?}", &file[..20]);
        }
    }
}
