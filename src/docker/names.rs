//! Which name servers and domains a container of Docker asks: `/etc/resolv.conf`, as its network's driver wants it.
//!
//! Docker writes that file on the host, anew at each start, and mounts it into the container. A driver's `dns` and `dns_search` stand in
//! for what Docker took from the host, and behind what the user gave with `--dns` and `--dns-search`, as if they had been given so.
//! Docker's lines stay in the file as comments, so that the driver may change its mind: what is written follows from Docker's text
//! alone, however often it was changed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Around the lines that are ours.
const BEGIN: &str = "# underpass: what the network's driver says";
const END: &str = "# underpass: what Docker says";

/// Before a line of Docker's that does not count meanwhile.
const AWAY: &str = "#underpass# ";

/// Docker's own name server in networks that somebody made with it: containers find each other by it, so it stays.
const DOCKERS_OWN: &str = "127.0.0.11";

/// Name servers that count (glibc's `MAXNS`).
const MAX_SERVERS: usize = 3;

/// Octets of such a file.
const MAX_FILE: u64 = 64 * 1024;

/// What a container is to ask.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Names {
    /// Of the network's driver.
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
    /// The user gave the container name servers, or domains, of its own.
    pub has_servers: bool,
    pub has_search: bool,
}

/// Makes a container's file say this. Returns whether it said something else. The file stays the one that Docker has mounted.
pub(super) fn write(path: &Path, names: &Names) -> io::Result<bool> {
    // What a container may put there is text; the file's place is Docker's.
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let mut present = String::new();
    Read::by_ref(&mut &file).take(MAX_FILE).read_to_string(&mut present)?;
    let wanted = names.in_place_of(&present);
    if wanted == present {
        return Ok(false);
    }
    overwrite(&file, &wanted)?;
    Ok(true)
}

/// Whoever reads meanwhile finds the beginning of a file, never an empty one.
fn overwrite(file: &File, text: &str) -> io::Result<()> {
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}

impl Names {
    /// The whole text, made of what Docker wrote or of what we made of that.
    fn in_place_of(&self, present: &str) -> String {
        let docker = without_ours(present);
        let words = |key: &str| -> Vec<String> {
            let lines = docker.iter().filter_map(|line| line.strip_prefix(key)?.strip_prefix([' ', '\t']));
            lines.flat_map(str::split_ascii_whitespace).map(str::to_owned).collect()
        };
        let given = words("nameserver");
        let is_dockers = given.iter().any(|server| server == DOCKERS_OWN);
        let servers = self.servers.iter().map(ToString::to_string).collect();
        let servers = if is_dockers { Vec::new() } else { joined(given, self.has_servers, servers) };
        let search = joined([words("domain"), words("search")].concat(), self.has_search, self.search.clone());
        if servers.is_empty() && search.is_empty() {
            return docker.iter().map(|line| format!("{line}\n")).collect();
        }
        let mut text = format!("{BEGIN}\n");
        text.extend(servers.iter().take(MAX_SERVERS).map(|server| format!("nameserver {server}\n")));
        if !search.is_empty() {
            text += &format!("search {}\n", search.join(" "));
        }
        text += &format!("{END}\n");
        for line in docker {
            let replaced = match line.split_ascii_whitespace().next() {
                Some("nameserver") => !servers.is_empty(),
                Some("search" | "domain") => !search.is_empty(),
                _ => false,
            };
            text += &format!("{}{line}\n", if replaced { AWAY } else { "" });
        }
        text
    }
}

/// What counts instead of Docker's lines, each word once; nothing if the driver says nothing.
fn joined(docker: Vec<String>, is_users: bool, driver: Vec<String>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    if driver.is_empty() {
        return all;
    }
    for word in docker.into_iter().filter(|_| is_users).chain(driver) {
        if !all.contains(&word) {
            all.push(word);
        }
    }
    all
}

/// Docker's lines, as they were before we came.
fn without_ours(text: &str) -> Vec<String> {
    let mut ours = false;
    let mut docker = Vec::new();
    for line in text.lines() {
        match line {
            // One without an end is somebody's comment.
            BEGIN => ours = text.lines().any(|line| line == END),
            END => ours = false,
            _ if ours => {}
            _ => docker.push(line.strip_prefix(AWAY).unwrap_or(line).to_owned()),
        }
    }
    docker
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = "nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch example.org\noptions ndots:0\n";

    fn names(servers: &[&str], search: &[&str]) -> Names {
        Names {
            servers: servers.iter().map(|server| server.parse().unwrap()).collect(),
            search: search.iter().map(|&domain| domain.to_owned()).collect(),
            ..Names::default()
        }
    }

    /// What a resolver reads in it.
    fn read(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with('#')).collect()
    }

    #[test]
    fn a_driver_stands_in_for_the_host_and_behind_the_user() {
        let driver = names(&["10.42.0.53", "fd00::53"], &["rancher.internal"]);
        let said = driver.in_place_of(DOCKER);
        assert_eq!(
            read(&said),
            ["nameserver 10.42.0.53", "nameserver fd00::53", "search rancher.internal", "options ndots:0"]
        );
        let user = Names { has_servers: true, has_search: true, ..driver.clone() };
        let both = ["nameserver 192.0.2.1", "nameserver 192.0.2.2", "nameserver 10.42.0.53"];
        assert_eq!(read(&user.in_place_of(DOCKER))[..3], both, "three count");
        assert!(user.in_place_of(DOCKER).contains("\nsearch example.org rancher.internal\n"));
        let servers = names(&["10.42.0.53"], &[]);
        assert_eq!(read(&servers.in_place_of(DOCKER)), ["nameserver 10.42.0.53", "search example.org", "options ndots:0"]);
        let search = names(&[], &["a.example", "b.example"]);
        let docker = "nameserver 127.0.0.11\noptions ndots:0\n";
        for driver in [search, names(&["10.42.0.53"], &["a.example", "b.example"])] {
            let said = driver.in_place_of(docker);
            assert_eq!(read(&said), ["search a.example b.example", "nameserver 127.0.0.11", "options ndots:0"]);
        }
    }

    #[test]
    fn a_driver_that_changes_its_mind_is_followed_and_leaves_nothing() {
        let [one, other] = [names(&["10.42.0.53"], &["a.example"]), names(&["10.42.0.54"], &[])];
        let first = one.in_place_of(DOCKER);
        assert_eq!(one.in_place_of(&first), first);
        assert_eq!(other.in_place_of(&first), other.in_place_of(DOCKER));
        assert_eq!(Names::default().in_place_of(&first), DOCKER);
        assert_eq!(Names::default().in_place_of(DOCKER), DOCKER);
        // What somebody left of our lines loses nothing of Docker's.
        let torn = first.replace(END, "");
        assert!(read(&other.in_place_of(&torn)).contains(&"options ndots:0"));
    }

    #[test]
    fn the_file_that_is_mounted_stays() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::fs::write(&path, DOCKER).unwrap();
        let inode = || std::fs::metadata(&path).unwrap().ino();
        let before = inode();
        let one = names(&["10.42.0.53"], &[]);
        assert!(write(&path, &one).unwrap() && !write(&path, &one).unwrap());
        assert!(write(&path, &Names::default()).unwrap());
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), inode()), (DOCKER, before));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(write(&link, &one).is_err(), "whoever put that there");
    }
}
