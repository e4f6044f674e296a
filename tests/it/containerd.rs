//! containerd's containers on the managed network, by `ctr run --cni`: it takes containers off with an empty `CNI_NETNS`.

use std::fs;

use serde_json::json;

use crate::lab::agent::{UNDERPASS, paired};
use crate::lab::command::{said, text};
use crate::lab::site::{bridge_ports, make_root};
use crate::lab::{Lab, attempt};

#[test]
fn a_container_of_ctr_comes_and_goes() {
    let lab = Lab::direct();
    let (alpha, _beta) = paired(&lab, |config| config);
    let key = alpha.key_file();
    let state = key.parent().expect("the state directory");
    let folder = tempfile::Builder::new().prefix("up").tempdir().expect("a folder");
    fs::create_dir(folder.path().join("networks")).expect("a folder");
    make_root(&folder.path().join("rootfs"));
    let plugin = json!({"type": "underpass-cni", "underpass": {"stateDir": state}});
    let list = json!({"cniVersion": "1.0.0", "name": "managed", "plugins": [plugin]});
    fs::write(folder.path().join("networks/10-managed.conflist"), list.to_string()).expect("a file");

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/scripts/ctr.sh");
    let folder_name = folder.path().display().to_string();
    let netns = format!("/run/netns/{}", lab.alpha.netns);
    let inside = "ip -4 -o address show eth0 && ping -n -c 3 -i 0.2 -W 2 10.42.2.1";
    // With its first process everything ends that containerd has started, however this ends.
    let host = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", script];
    let output = attempt(&[&host[..], &[&folder_name, &netns, UNDERPASS, "sh", "-c", inside]].concat());
    assert!(output.status.success(), "{}", said(&output));
    let output = text(&output.stdout);
    assert!(output.contains("10.42.1.2/16") && output.contains("3 received"), "{output}");

    let state = state.display().to_string();
    let leases = text(&attempt(&[UNDERPASS, "--state-dir", &state, "ipam", "ls"]).stdout);
    assert!(leases.contains(": 0 of 254 leased"), "{leases}");
    assert_eq!(bridge_ports(&lab.alpha), [""; 0]);
}
