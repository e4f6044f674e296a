//! What is wanted: the configuration as it is written, and as it is with the store's hosts joined in.

use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::membership::{Membership, View};
use super::mesh::{self, Here};
use super::{AgentError, files, preflight};
use crate::config::{Config, Report};
use crate::crypto::SigningKey;
use crate::store::Own;
use crate::store::etcd::{Asker, Claimed, Profile};

/// See the module.
pub(super) struct Wish {
    /// As the file says.
    pub base: Config,
    /// With what the store adds.
    pub config: Config,
    /// Ours: the first is signed with.
    pub host_keys: Vec<SigningKey>,
    /// What is to be said about what the store says.
    pub warnings: Vec<String>,
    membership: Membership,
    /// Whether `config` is another one than what runs.
    open: bool,
}

impl Wish {
    /// Of this configuration, and of what its store says now.
    ///
    /// # Errors
    /// If the store is a list of hosts that cannot be used: there is nothing that could stay as it was.
    pub(super) fn new(base: Config, host_keys: Vec<SigningKey>, state_dir: &Path) -> Result<Self, AgentError> {
        let mut report = Report::new(Path::new("store"));
        let credentials = files::load_credentials(&base, &mut report);
        if report.has_errors() {
            return Err(AgentError::Config(report));
        }
        let profile = profile(&base, &host_keys);
        let membership = Membership::new(base.store.as_ref(), &credentials, profile, state_dir)?;
        let mut wish = Self { config: base.clone(), base, host_keys, warnings: Vec::new(), membership, open: false };
        if wish.membership.look() {
            if let Some(crate::config::Store::File(path)) = &wish.base.store
                && let Some(why) = wish.membership.trouble()
            {
                let mut report = Report::new(&path.value);
                report.error(None, "", why);
                return Err(AgentError::Config(report));
            }
            wish.join();
        }
        Ok(wish)
    }

    /// Takes another configuration over.
    pub(super) fn change(&mut self, base: Config, host_keys: Vec<SigningKey>) {
        (self.base, self.host_keys) = (base, host_keys);
        self.membership.set_profile(profile(&self.base, &self.host_keys));
        self.join();
    }

    /// Asks the store for news; true if something is to be done.
    pub(super) fn look(&mut self) -> bool {
        if self.membership.look() {
            self.join();
            self.open = true;
        }
        self.open
    }

    /// Who speaks to the store, if it is one that can be changed.
    pub(super) fn asker(&self) -> Option<Asker> {
        self.membership.asker()
    }

    /// What other hosts have or want of our blocks, and whether the store was read since the start.
    pub(super) const fn claims(&self) -> &(Arc<Vec<Claimed>>, bool) {
        self.membership.claims()
    }

    /// Has a message when the store has something new.
    pub(super) fn news(&self) -> Receiver<()> {
        self.membership.news()
    }

    /// What is wanted is what runs.
    pub(super) fn done(&mut self) {
        self.open = false;
    }

    /// The store at this moment, and who we are in it.
    pub(super) fn view(&self) -> Option<(View, Own)> {
        self.membership.view(self.base.mesh).map(|view| (view, self.own()))
    }

    fn own(&self) -> Own {
        own(&self.base, &self.host_keys)
    }

    fn join(&mut self) {
        let Some(members) = self.membership.members() else {
            self.config = self.base.clone();
            self.warnings = self.membership.warnings().to_vec();
            self.warn_of_trouble();
            return;
        };
        // Without a look at our interfaces nothing is left out for their sake.
        let here = Here::look(&self.base.tun.name).unwrap_or_default();
        let (config, mut warnings) = mesh::join(&self.base, members, &self.own(), &here);
        for warning in warnings.iter().filter(|warning| !self.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        warnings.extend_from_slice(self.membership.warnings());
        (self.config, self.warnings) = (config, warnings);
        self.warn_of_trouble();
    }

    fn warn_of_trouble(&mut self) {
        if let Some(why) = self.membership.trouble() {
            self.warnings.push(format!("the store cannot be read, everything stays as it was: {why}"));
        }
    }
}

fn own(config: &Config, host_keys: &[SigningKey]) -> Own {
    Own { name: config.host.name.clone(), keys: host_keys.iter().map(SigningKey::verifying_key).collect() }
}

/// What the store is to know of this host.
fn profile(config: &Config, host_keys: &[SigningKey]) -> Profile {
    let addresses = preflight::advertised(config);
    Profile {
        own: own(config, host_keys),
        // An interface that is not there (yet) has no address.
        addresses: addresses.into_iter().filter(|address| !address.starts_with("iface:")).collect(),
        natt_port: config.host.listen.natt_port,
        blocks: config.overlay.blocks.clone(),
    }
}
