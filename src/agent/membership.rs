//! The store as the agent follows it: what it said last, since when, and what is wrong with it.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, never};

use super::AgentError;
use crate::config;
use crate::observe;
use crate::store::etcd::{Asker, Claimed, Credentials, Etcd, Profile};
use crate::store::{FileStore, Look, Members};

/// What is known of the other hosts.
pub(super) struct Membership {
    source: Source,
    members: Option<Arc<Members>>,
    /// When `members` was last another one.
    changed: Option<Instant>,
    /// Why the store cannot be read, and since when.
    trouble: Option<(String, Instant)>,
    /// What the store has to say besides.
    warnings: Vec<String>,
    /// How far it is, in etcd.
    revision: Option<u64>,
    /// What other hosts have or want of our blocks, and whether the store was read since the start.
    claims: (Arc<Vec<Claimed>>, bool),
}

enum Source {
    /// Peers are listed by hand alone.
    None,
    File(FileStore),
    Etcd(Etcd),
}

impl Membership {
    /// What the configuration says; of this host the store is to know this profile.
    ///
    /// # Errors
    /// If etcd cannot be followed at all.
    pub(super) fn new(
        store: Option<&config::Store>,
        credentials: &Credentials,
        profile: Profile,
        state_dir: &Path,
    ) -> Result<Self, AgentError> {
        let source = match store {
            Some(config::Store::File(path)) => Source::File(FileStore::new(path.value.clone())),
            Some(config::Store::Etcd(settings)) => {
                let etcd = Etcd::start(settings, credentials, profile, state_dir.to_owned());
                Source::Etcd(etcd.map_err(|error| AgentError::Failed(format!("the store cannot be followed: {error}")))?)
            }
            None => Source::None,
        };
        Ok(Self {
            source,
            members: None,
            changed: None,
            trouble: None,
            warnings: Vec::new(),
            revision: None,
            claims: (Arc::default(), false),
        })
    }

    /// Of this host the store is to know this profile from now on.
    pub(super) fn set_profile(&self, profile: Profile) {
        if let Source::Etcd(etcd) = &self.source {
            etcd.set_profile(profile);
        }
    }

    /// Has a message when there is something new; a file has to be looked at.
    pub(super) fn news(&self) -> Receiver<()> {
        match &self.source {
            Source::None | Source::File(_) => never(),
            Source::Etcd(etcd) => etcd.changed().clone(),
        }
    }

    /// Looks whether there is something new; true if there are other members than before, or another trouble.
    pub(super) fn look(&mut self) -> bool {
        let found = match &mut self.source {
            Source::None => return false,
            Source::File(file) => file.look(),
            Source::Etcd(etcd) => {
                let now = etcd.snapshot();
                let is_same = |known: &Option<Arc<Members>>| match (known, &now.members) {
                    (Some(known), Some(members)) => Arc::ptr_eq(known, members),
                    (known, members) => known.is_none() && members.is_none(),
                };
                let trouble = now.trouble.map(|(since, why)| (why, since));
                let is_news = !is_same(&self.members) || self.warnings != now.warnings || self.trouble != trouble;
                self.revision = u64::try_from(now.revision).ok();
                (self.members, self.changed) = (now.members, now.changed);
                (self.trouble, self.warnings) = (trouble, now.warnings);
                self.claims = (now.claims, now.live);
                return is_news;
            }
        };
        match found {
            Look::Same => false,
            Look::New(members, report) => {
                for message in &report.messages {
                    tracing::warn!("{}: {}: {}", report.file.display(), message.key, message.text);
                }
                self.trouble = None;
                if self.members.as_deref() != Some(&members) {
                    self.members = Some(Arc::new(members));
                    self.changed = Some(Instant::now());
                }
                true
            }
            Look::Broken(why) => {
                let why = why.trim_end().replace('\n', "; ");
                tracing::error!("the list of hosts cannot be used: {why}");
                let since = self.trouble.as_ref().map_or_else(Instant::now, |(_, since)| *since);
                self.trouble = Some((why, since));
                true
            }
        }
    }

    /// Whose hosts there are.
    pub(super) fn members(&self) -> Option<&Arc<Members>> {
        self.members.as_ref()
    }

    /// Why the store cannot be read.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|(why, _)| why.as_str())
    }

    /// What the store has to say besides.
    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What other hosts have or want of our blocks, and whether the store was read since the start.
    pub(super) const fn claims(&self) -> &(Arc<Vec<Claimed>>, bool) {
        &self.claims
    }

    /// Who speaks to the store, if it is one that can be changed.
    pub(super) fn asker(&self) -> Option<Asker> {
        match &self.source {
            Source::None | Source::File(_) => None,
            Source::Etcd(etcd) => Some(etcd.asker()),
        }
    }

    /// What the status says of it, as it was a moment ago.
    pub(super) fn view(&self, mesh: config::Mesh) -> Option<View> {
        let (kind, place) = match &self.source {
            Source::None => return None,
            Source::File(file) => ("file", file.path().display().to_string()),
            Source::Etcd(etcd) => ("etcd", etcd.place()),
        };
        Some(View {
            kind,
            place,
            mesh: match mesh {
                config::Mesh::Full => "full",
                config::Mesh::OnDemand => "on-demand",
            },
            members: self.members.clone(),
            changed: self.changed,
            trouble: self.trouble.clone(),
            revision: self.revision,
            asker: self.asker(),
        })
    }
}

/// The store at one moment.
#[derive(Debug)]
pub(super) struct View {
    kind: &'static str,
    place: String,
    mesh: &'static str,
    pub members: Option<Arc<Members>>,
    changed: Option<Instant>,
    trouble: Option<(String, Instant)>,
    revision: Option<u64>,
    /// Who carries out what is to be changed in it, if that can be.
    pub asker: Option<Asker>,
}

impl View {
    /// In the words of the status.
    pub(super) fn observe(&self) -> observe::Store {
        let members = self.members.as_deref();
        let ago = |at: Instant| at.elapsed().as_secs();
        observe::Store {
            kind: self.kind.to_owned(),
            place: self.place.clone(),
            mesh: self.mesh.to_owned(),
            reachable: self.trouble.is_none(),
            unreachable_seconds: self.trouble.as_ref().map(|(_, since)| ago(*since)),
            last_error: self.trouble.as_ref().map(|(why, _)| why.clone()),
            changed_seconds: self.changed.map(ago),
            revision: self.revision,
            hosts: members.map(|members| members.hosts.len() as u64),
            group_key: members.is_some_and(|members| members.group_key.is_some()),
        }
    }
}
