//! Containers that run, and whose MTU is another than it should be: the tunnel's device has changed, or what their network says.
//!
//! Both ends of a container's wire change, routes in the container follow its interface, and a bridge of ours follows its ports. The
//! container's end stands in a namespace that nothing on this side names, so it is looked for among those that there are.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::wire::port_in;
use super::{AttachError, Port, port_of};
use crate::ipam::Owner;
use crate::sys::netlink::{Link, Netlink, absent_is_fine};
use crate::sys::netns::Namespace;

/// Where named namespaces are.
const NAMED: &str = "/run/netns";

/// The smaller of what a network says and what its tunnel takes, as far as either is known.
pub(super) fn least(said: Option<u32>, tun: Option<u32>) -> Option<u32> {
    said.into_iter().chain(tun).min()
}

/// Gives both ends of a container's wire another MTU, while it runs.
///
/// # Errors
/// What the kernel refused; [`AttachError::Absent`] if the container has no such interface.
pub fn set_mtu(owner: &Owner, netns: &Path, mtu: u32) -> Result<(), AttachError> {
    let mut netlink = Netlink::open()?;
    let port = netlink.link(&port_of(owner))?;
    let inside = || {
        Namespace::open(netns)?.run(|| match Netlink::open()?.set_mtu(&owner.interface, mtu) {
            Err(error) if error.is_absent() => Err(AttachError::Absent(owner.interface.clone())),
            other => Ok(other?),
        })?
    };
    // The end that sends must not be the wider one: what is too large for the other is lost without a word.
    if mtu > port.mtu {
        netlink.set_mtu(&port.name, mtu)?;
        return inside();
    }
    inside()?;
    Ok(netlink.set_mtu(&port.name, mtu)?)
}

/// Makes the MTU of every container on this host what `said` says, or what the tunnel's device takes if that says nothing; never more
/// than that. `known` are paths of namespaces that may be no process's. Returns which ports have another MTU.
///
/// # Errors
/// What the kernel refused. A container that cannot be found any more is on its way out, and is left alone.
pub fn follow_mtu(tun: &str, known: &[PathBuf], said: &dyn Fn(&Port) -> Option<u32>) -> Result<Vec<String>, AttachError> {
    let mut netlink = Netlink::open()?;
    let tun = match netlink.link(tun) {
        Ok(tun) => Some(tun.mtu),
        Err(error) if error.is_absent() => None,
        Err(error) => return Err(error.into()),
    };
    let ports = netlink.links()?.into_iter().filter_map(port_in);
    let wanted = |port: &Port| least(said(port), tun).filter(|mtu| *mtu != port.mtu);
    let mut wrong: Vec<(Port, u32)> = ports.filter_map(|port| wanted(&port).map(|mtu| (port, mtu))).collect();
    let mut changed = Vec::new();
    if wrong.is_empty() {
        return Ok(changed);
    }
    for namespace in namespaces(known) {
        // It may end at any moment.
        let Ok(inside) = namespace.run(|| Netlink::open()?.links()) else { continue };
        let inside = inside?;
        let mut here = Vec::new();
        wrong.retain(|(port, mtu)| {
            let name = port.owner.as_ref().map(|owner| &owner.interface);
            let is_end = |link: &&Link| {
                (link.other_end, Some(link.index)) == (Some(port.ends.0), port.ends.1)
                    && name.is_none_or(|it| *it == link.name)
            };
            let end = inside.iter().find(is_end);
            here.extend(end.map(|end| (port.clone(), end.name.clone(), *mtu)));
            end.is_none()
        });
        for (port, end, mtu) in here {
            let set = |netlink: &mut Netlink| absent_is_fine(netlink.set_mtu(&port.name, mtu));
            // As in `set_mtu`: the container's end is never the wider one.
            if mtu > port.mtu {
                set(&mut netlink)?;
            }
            let Ok(done) = namespace.run(|| absent_is_fine(Netlink::open()?.set_mtu(&end, mtu))) else { continue };
            done?;
            set(&mut netlink)?;
            changed.push(port.name);
        }
        if wrong.is_empty() {
            break;
        }
    }
    Ok(changed)
}

/// Every network namespace but this one: of processes, those with names, and the known ones.
fn namespaces(known: &[PathBuf]) -> impl Iterator<Item = Namespace> {
    let entries = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten();
    let is_number = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let of_processes = entries("/proc").filter(is_number).map(|entry| entry.path().join("ns/net"));
    let paths: Vec<PathBuf> =
        known.iter().cloned().chain(entries(NAMED).map(|entry| entry.path())).chain(of_processes).collect();
    let inode = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let mut seen: BTreeSet<(u64, u64)> = inode(Path::new("/proc/thread-self/ns/net")).into_iter().collect();
    let mut is_new = move |path: &PathBuf| inode(path).is_some_and(|inode| seen.insert(inode));
    paths.into_iter().filter(move |path| is_new(path)).filter_map(|path| Namespace::open(&path).ok())
}
