//! We and strongSwan with X.509 certificates (feature `x509`), made by `openssl` in each test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::lab::agent::{Agent, AgentConfig, FIRST_CONTACT, PeerConfig, Proof};
use crate::lab::swan::{Auth, Swan, SwanConfig};
use crate::lab::traffic::both_answer;
use crate::lab::{Host, Lab, run, wait_for};

/// A kind of key in the words of `openssl genpkey`, and how strongSwan is to sign with it.
const KINDS: [(&[&str], &str); 4] = [
    (&["ED25519"], "pubkey"),
    (&["EC", "-pkeyopt", "ec_paramgen_curve:P-256"], "pubkey"),
    (&["EC", "-pkeyopt", "ec_paramgen_curve:P-384"], "pubkey"),
    (&["RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "rsa/pss-sha256"),
];

/// An authority in a folder of its own.
struct Authority {
    folder: TempDir,
}

impl Authority {
    fn new(kind: &[&str]) -> Self {
        let authority = Self { folder: tempfile::tempdir().expect("a folder") };
        let key = authority.key("ca", kind);
        let subject = ["-x509", "-subj", "/O=Laboratory/CN=Laboratory CA", "-days", "2"];
        let usage = ["-addext", "keyUsage=critical,keyCertSign", "-out"];
        run(&[&["openssl", "req", "-new", "-key", &shown(&key)], &subject[..], &usage, &[&shown(&authority.file())]]
            .concat());
        authority
    }

    /// Its certificate.
    fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn key(&self, name: &str, kind: &[&str]) -> PathBuf {
        let path = self.folder.path().join(format!("{name}.key"));
        run(&[&["openssl", "genpkey", "-out", &shown(&path), "-algorithm"], kind].concat());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
        path
    }

    /// A certificate for this name and its key, valid from now for some days: none of them are past.
    fn issue(&self, name: &str, kind: &[&str], days: i32) -> (PathBuf, PathBuf) {
        let key = self.key(name, kind);
        let path = |kind: &str| shown(&self.folder.path().join(format!("{name}.{kind}")));
        let (request, extensions, certificate) = (path("csr"), path("ext"), path("pem"));
        fs::write(&extensions, format!("subjectAltName=DNS:{name}\nkeyUsage=digitalSignature\n")).expect("a file");
        run(&[
            "openssl",
            "req",
            "-new",
            "-key",
            &shown(&key),
            "-subj",
            &format!("/O=Laboratory/CN={name}"),
            "-out",
            &request,
        ]);
        let (authority, authority_key) = (shown(&self.file()), shown(&self.folder.path().join("ca.key")));
        let by = ["-CA", &authority, "-CAkey", &authority_key, "-CAcreateserial", "-extfile", &extensions];
        let days = days.to_string();
        run(&[&["openssl", "x509", "-req", "-in", &request, "-days", &days, "-out", &certificate], &by[..]].concat());
        (PathBuf::from(certificate), key)
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Our configuration towards a peer: this certificate, and this authority.
fn ours(host: &Host, peer: PeerConfig, (certificate, key): (PathBuf, PathBuf), authority: &Authority) -> AgentConfig {
    let mut config = AgentConfig::new(host, &[peer.proof(Proof::Certificate(authority.file()))]);
    config.host = format!("  certificate_file: {}\n  certificate_key_file: {}\n", shown(&certificate), shown(&key));
    config
}

fn theirs(lab: &Lab, (certificate, private): (PathBuf, PathBuf), authority: &Authority, method: &'static str) -> SwanConfig {
    let mut config = SwanConfig::new(&lab.beta, &lab.alpha);
    config.auth = Auth::Certificate { private, certificate, authority: authority.file(), method };
    config
}

/// Both ends have keys of this kind, and so has the authority; we call, then strongSwan does.
fn certificates_authenticate((kind, method): (&[&str], &'static str)) {
    let authority = Authority::new(kind);
    let [alpha_files, beta_files] = ["alpha", "beta"].map(|name| authority.issue(name, kind, 1));
    for we_call in [true, false] {
        eprintln!("--- {kind:?}, we call: {we_call}");
        let lab = Lab::direct();
        let peer = if we_call { PeerConfig::at(&lab.beta) } else { PeerConfig::calling(&lab.beta) };
        let beta = Swan::start(&lab.beta, &theirs(&lab, beta_files.clone(), &authority, method));
        let alpha = Agent::running(&lab.alpha, &ours(&lab.alpha, peer, alpha_files.clone(), &authority));
        if !we_call {
            beta.initiate();
        }
        alpha.wait_for_state("beta", "up", FIRST_CONTACT);
        both_answer(&lab);
        let ike = alpha.peer("beta").0["ike"].clone();
        assert_eq!(ike["initiator"].as_bool(), Some(we_call));
        let known = ike["remote_proof"].as_str().expect("a proof");
        let fingerprint = run(&["openssl", "x509", "-in", &shown(&beta_files.0), "-noout", "-fingerprint", "-sha256"]);
        let fingerprint = fingerprint.trim().split_once('=').expect("a fingerprint").1;
        assert_eq!(known, format!("certificate O=Laboratory, CN=beta, SHA-256 {fingerprint}"));
    }
}

#[test]
fn ed25519_certificates_authenticate() {
    certificates_authenticate(KINDS[0]);
}

#[test]
fn ecdsa_p256_certificates_authenticate() {
    certificates_authenticate(KINDS[1]);
}

#[test]
fn ecdsa_p384_certificates_authenticate() {
    certificates_authenticate(KINDS[2]);
}

#[test]
fn rsa_pss_certificates_authenticate() {
    certificates_authenticate(KINDS[3]);
}

/// strongSwan has what is wrong, and calls and is called: either way we refuse it and say why.
fn is_refused(spoil: impl Fn(&Authority, &mut SwanConfig), why: &str) {
    let kind = KINDS[1].0;
    let authority = Authority::new(kind);
    let [alpha_files, beta_files] = ["alpha", "beta"].map(|name| authority.issue(name, kind, 1));
    let lab = Lab::direct();
    let mut config = theirs(&lab, beta_files, &authority, "pubkey");
    spoil(&authority, &mut config);
    let beta = Swan::start(&lab.beta, &config);
    let peer = PeerConfig::at(&lab.beta);
    let alpha = Agent::running(&lab.alpha, &ours(&lab.alpha, peer, alpha_files, &authority));
    let initiated = beta.attempt_control(&["--initiate", "--child", "net", "--timeout", "10"]);
    assert!(!initiated.status.success());
    let complaint = || {
        let error = alpha.peer("beta").0["last_error"].as_str().unwrap_or_default().to_owned();
        error.contains(why).then_some(error)
    };
    let (error, _) = wait_for(why, FIRST_CONTACT, complaint);
    eprintln!("{error}");
    wait_for("strongSwan to be told", FIRST_CONTACT, || beta.log().contains("N(AUTH_FAILED)").then_some(()));
    assert_ne!(alpha.peer("beta").state(), "up");
}

/// Replaces what strongSwan shows.
fn shows(config: &mut SwanConfig, files: (PathBuf, PathBuf)) {
    if let Auth::Certificate { certificate, private, .. } = &mut config.auth {
        (*certificate, *private) = files;
    }
}

#[test]
fn an_expired_certificate_is_refused() {
    // openssl takes no days of the past together with a beginning: one that ends when it begins is over a second later.
    is_refused(
        |authority, config| {
            shows(config, authority.issue("beta", KINDS[1].0, 0));
            thread::sleep(Duration::from_secs(2));
        },
        "the certificate of O=Laboratory, CN=beta expired on 20",
    );
}

#[test]
fn an_unknown_authority_is_refused() {
    // Of the same name: names prove nothing.
    let other = Authority::new(KINDS[0].0);
    is_refused(
        |_, config| shows(config, other.issue("beta", KINDS[1].0, 1)),
        "is not signed by the pinned authority (O=Laboratory, CN=Laboratory CA)",
    );
}

#[test]
fn a_certificate_for_somebody_else_is_refused() {
    // strongSwan itself insists that its identity stands in its certificate, and falls back to the subject.
    let names = |config: &mut SwanConfig| config.local_id = "gamma".to_owned();
    is_refused(
        |authority, config| {
            shows(config, authority.issue("gamma", KINDS[1].0, 1));
            names(config);
        },
        "it calls itself gamma, and no peer here has that identity",
    );
}

#[test]
fn rsa_with_pkcs1_v1_5_is_refused() {
    is_refused(|authority, config| shows(config, authority.issue("beta", KINDS[3].0, 1)), "only RSASSA-PSS is taken");
}
