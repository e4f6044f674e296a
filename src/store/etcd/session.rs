//! The thread that follows etcd: lists, joins, watches, and begins anew whatever happens.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use ipnet::IpNet;

use super::api::{Api, ApiError, Guard, Told, Write};
use super::claim::{Claim, ClaimError, claim};
use super::records::{HostRecord, Keys, NetworkRecord, Records, VERSION, host_id};
use super::singles::Claims;
use super::usage::{Refused, Settled};
use super::{Command, Profile, Shared};
use crate::config::EtcdSettings;
use crate::store::{Member, Own, cache};

/// How long the thread listens before it looks at its commands.
const BREATH: Duration = Duration::from_millis(250);

/// After the first of several changes, more are waited for so long: a thousand hosts that start are a few tables of routes.
const GATHER: Duration = Duration::from_millis(100);

/// Life of the record that says that this host is there, in seconds.
const LEASE: u32 = 30;

/// How often it is prolonged, which also shows whether the store is there.
const BEAT: Duration = Duration::from_secs(10);

/// Pauses between attempts to reach the store: doubled from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));

/// How often what the store said is written to disk at most.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// Records of single addresses that go with a removed host, in one transaction. What is left of them counts as nobody's.
const MAX_DELETED: usize = 32;

/// Blocks that go with a removed host in one transaction: etcd takes 128 operations (`--max-txn-ops`), these, [`MAX_DELETED`] and the host's
/// own records.
const MAX_FREED: usize = 80;

/// How often something that did not work in the store itself is tried again: a block where all are taken, a record that another machine
/// overwrites.
pub(super) const TRY_AGAIN: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Follower {
    pub(super) api: Api,
    pub(super) keys: Keys,
    pub(super) network: NetworkRecord,
    pub(super) profile: Profile,
    state_dir: PathBuf,
    mailbox: Receiver<Command>,
    pub(super) shared: Arc<Shared>,
    wake: Sender<()>,
    pub(super) records: Records,
    /// Blocks that are ours, whatever the store says later; the first one stays the first.
    pub(super) owned: Vec<IpNet>,
    lease: Option<i64>,
    /// Our record as it was written last, and when.
    written: Option<(HostRecord, Instant)>,
    /// What is to be said, besides what is wrong with records.
    warnings: Vec<String>,
    /// What containers use, as far as the store knows it.
    pub(super) settled: Settled,
    /// Who waits for single addresses.
    pub(super) claims: Claims,
    /// Whether everything was listed since the start: what was known before is not all, and may be old.
    listed: bool,
    /// When joining is tried again though nothing changed.
    join_at: Option<Instant>,
    /// When and up to which revision it was saved.
    saved: Option<(Instant, i64)>,
    /// The revision of the last change that is worth to be saved.
    lasting: i64,
}

/// Why a session ended.
pub(super) enum End {
    /// The agent goes.
    Stopped,
    /// The store went away, or refuses.
    Failed(ApiError),
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

impl Follower {
    pub(super) fn new(
        api: Api,
        settings: &EtcdSettings,
        profile: Profile,
        state_dir: PathBuf,
        mailbox: Receiver<Command>,
        shared: Arc<Shared>,
        wake: Sender<()>,
    ) -> Self {
        let keys = Keys::new(&settings.prefix);
        Self {
            api,
            network: NetworkRecord { v: VERSION, subnets: settings.subnets.clone(), block: settings.block },
            profile,
            state_dir,
            mailbox,
            shared,
            wake,
            records: Records::new(&keys),
            keys,
            owned: Vec::new(),
            lease: None,
            written: None,
            warnings: Vec::new(),
            settled: Settled::default(),
            claims: Claims::default(),
            listed: false,
            join_at: None,
            saved: None,
            lasting: 0,
        }
    }

    /// Takes over what the store said before the agent was stopped.
    pub(super) fn recall(&mut self) {
        match cache::load(&self.state_dir, self.keys.all()) {
            Ok(Some(cached)) => {
                self.owned = cached.owned;
                self.records = Records::restore(&self.keys, cached.head, cached.entries);
                self.publish();
            }
            Ok(None) => {}
            Err(why) => tracing::warn!("what the store said before is not known: {why}"),
        }
    }

    /// Follows until it is told to stop.
    pub(super) fn follow(mut self) {
        let mut pause = PAUSES.0;
        loop {
            let began = Instant::now();
            let Err(end) = self.session();
            let error = match end {
                End::Stopped => return,
                End::Failed(error) => error,
            };
            self.note_trouble(&error);
            self.claims.fail("the store cannot be reached");
            // Who knows when there is more.
            self.save(true);
            if began.elapsed() > BEAT {
                pause = PAUSES.0;
            }
            // Hosts that lost the store at once do not return at once.
            let id = self.id();
            let odd = id.bytes().fold(0u32, |mixed, octet| mixed.wrapping_mul(31).wrapping_add(octet.into())) % 500;
            if self.rest(pause + Duration::from_millis(odd.into()), &error) {
                return;
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// From a connection to its end.
    fn session(&mut self) -> Result<std::convert::Infallible, End> {
        loop {
            let head = self.api.head(self.keys.all())?;
            let known = &self.records.head;
            let goes_on = known.revision > 0 && known.cluster == head.cluster && known.revision <= head.revision;
            if !(goes_on && self.listed) {
                self.refresh()?;
            }
            self.over();
            self.settled.stale = true;
            self.join()?;
            self.publish();
            let mut watch = self.api.watch(self.keys.all(), self.records.head.revision + 1)?;
            if !self.watch(&mut watch)? {
                tracing::info!(
                    "the store has forgotten the changes since revision {}: it is listed anew",
                    self.records.head.revision
                );
                self.records.head.revision = 0;
            }
        }
    }

    /// Follows changes until they are not to be had any more (false).
    fn watch(&mut self, watch: &mut super::api::Watch) -> Result<bool, End> {
        let mut beat_at = Instant::now() + BEAT;
        loop {
            let mut news = false;
            let mut until = Instant::now() + BREATH;
            loop {
                match watch.next(until)? {
                    Told::Nothing => break,
                    Told::Compacted => return Ok(false),
                    Told::Ended(why) => return Err(ApiError::Refused { path: "/v3/watch", message: why }.into()),
                    Told::Changes(changes, revision) => {
                        // Containers of other hosts come and go all the time, and concern nobody who does not ask.
                        let is_news = changes.iter().any(|change| {
                            let key = change.as_ref().map_or_else(|key| key, |kv| &kv.key);
                            !self.keys.is_endpoint(key)
                        });
                        if is_news && !std::mem::replace(&mut news, true) {
                            until = Instant::now() + GATHER;
                        }
                        changes.into_iter().for_each(|change| self.records.change(change));
                        self.records.head.revision = self.records.head.revision.max(revision);
                        if is_news {
                            self.lasting = self.records.head.revision;
                        }
                    }
                }
            }
            let now = Instant::now();
            if news || self.join_at.is_some_and(|at| at <= now) {
                self.settled.stale = true;
                self.join()?;
                self.publish();
            }
            self.obey()?;
            if now >= beat_at {
                self.beat()?;
                self.settled.stale = true;
                beat_at = now + BEAT;
            }
            self.settle()?;
            self.save(false);
        }
    }

    /// Our ID: the one that our record has, or made of our key.
    pub(super) fn id(&self) -> String {
        let own = &self.profile.own.keys;
        self.records.id_of(own).or_else(|| own.first().map(host_id)).unwrap_or_default()
    }

    /// Sees to it that the store knows this host, its network and its blocks.
    fn join(&mut self) -> Result<(), End> {
        self.warnings.clear();
        self.join_at = None;
        let id = self.id();
        if self.records.is_removed(&id) {
            self.warn(
                "this host was removed from the store (`underpass host rm`): it comes back with another key only".to_owned(),
            );
            return Ok(());
        }
        if self.records.network().is_none() {
            let key = self.keys.network();
            let value = serde_json::to_vec(&self.network).unwrap_or_default();
            self.api.transact(&[Guard::Absent(&key)], &[Write::Put(&key, value)])?;
            // Ours, or that of who was quicker.
            self.api.list(&key)?.kvs.into_iter().for_each(|kv| self.records.change(Ok(kv)));
        }
        self.write_host(&id)?;
        self.own_blocks(&id)?;
        if self.lease.is_none() || !self.records.is_alive(&id) {
            self.live(&id)?;
        }
        Ok(())
    }

    fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// Lists everything.
    fn refresh(&mut self) -> Result<(), End> {
        let (own, listing) = (self.id(), self.api.list(self.keys.all())?);
        self.records.replace(listing.head, listing.kvs, &own);
        self.lasting = self.records.head.revision;
        self.listed = true;
        Ok(())
    }

    /// What this host says of itself.
    fn record(&self) -> HostRecord {
        let Profile { own, addresses, natt_port, .. } = &self.profile;
        let mut addresses = addresses.clone();
        if addresses.is_empty() {
            // Where it speaks to the store from, others may reach it as well.
            let seen = self.api.local_address().filter(|address| !address.is_loopback());
            addresses.extend(seen.map(|address| address.to_string()));
        }
        let with_port = |text: String| match text.parse::<std::net::IpAddr>() {
            Ok(address) if *natt_port != 4500 => std::net::SocketAddr::new(address, *natt_port).to_string(),
            _ => text,
        };
        HostRecord {
            v: VERSION,
            name: own.name.clone(),
            keys: own.keys.iter().map(crate::crypto::VerifyingKey::to_base64).collect(),
            addresses: addresses.into_iter().map(with_port).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn write_host(&mut self, id: &str) -> Result<(), End> {
        let (stored, record) = (self.records.host(id), self.record());
        if stored.as_ref() == Some(&record) {
            return Ok(());
        }
        if let (Some((written, at)), Some(_)) = (&self.written, &stored)
            && *written == record
            && at.elapsed() < TRY_AGAIN
        {
            self.warn(
                "another machine writes this host's record: it has a copy of this host's key, which must be its own"
                    .to_owned(),
            );
            self.join_at = Some(Instant::now() + TRY_AGAIN);
            return Ok(());
        }
        let (key, removed) = (self.keys.host(id), self.keys.removed(id));
        let value = serde_json::to_vec(&record).unwrap_or_default();
        if self.api.transact(&[Guard::Absent(&removed)], &[Write::Put(&key, value)])? {
            self.written = Some((record, Instant::now()));
        }
        Ok(())
    }

    /// Every block that the configuration names, that this host had before, or else one that is free.
    fn own_blocks(&mut self, id: &str) -> Result<(), End> {
        let stored = self.records.blocks();
        let is_ours = |block: &IpNet| stored.get(block).is_some_and(|owner| owner == id);
        let given = self.profile.blocks.clone();
        let wanted = if given.is_empty() { self.owned.clone() } else { given };
        let mut claimed = self.records.blocks_of(id);
        let known = claimed.len();
        let missing: Vec<IpNet> = wanted.into_iter().filter(|block| !is_ours(block)).collect();
        for block in missing {
            match claim(&mut self.api, &self.keys, id, Claim::Just(block)) {
                Ok(block) => claimed.push(block),
                Err(ClaimError::Api(error)) => return Err(error.into()),
                // What containers use here is not taken from them.
                Err(error) => self.refused(format!("{error}; it stays in use here, and other hosts send nothing to it")),
            }
        }
        if claimed.is_empty() && self.owned.is_empty() && self.profile.blocks.is_empty() {
            let network = self.records.network().unwrap_or_else(|| self.network.clone());
            let without: Vec<IpAddr> = self.records.singles().map(|(address, _)| address).collect();
            let any = Claim::Any { network: &network, within: &[], without: &without };
            match claim(&mut self.api, &self.keys, id, any) {
                Ok(block) => {
                    tracing::info!("{block} is this host's from now on");
                    claimed.push(block);
                }
                Err(ClaimError::Api(error)) => return Err(error.into()),
                Err(error) => self.refused(error.to_string()),
            }
        }
        if claimed.len() > known {
            self.learn_singles()?;
        }
        claimed.retain(|block| !self.owned.contains(block));
        self.owned.extend(claimed);
        Ok(())
    }

    fn refused(&mut self, why: String) {
        self.warn(why);
        self.look_again_at(TRY_AGAIN);
    }

    /// In so much time at the latest everything is looked at again.
    pub(super) fn look_again_at(&mut self, pause: Duration) {
        let at = Instant::now() + pause;
        self.join_at = Some(self.join_at.map_or(at, |before| before.min(at)));
    }

    /// Writes that this host is there, for as long as its lease lives.
    fn live(&mut self, id: &str) -> Result<(), End> {
        let lease = match self.lease {
            Some(lease) if self.api.keep_alive(lease)? => lease,
            _ => self.api.grant(LEASE)?,
        };
        self.lease = Some(lease);
        let (key, removed) = (self.keys.alive(id), self.keys.removed(id));
        self.api.transact(&[Guard::Absent(&removed)], &[Write::PutLeased(&key, b"{}".to_vec(), lease)])?;
        Ok(())
    }

    fn beat(&mut self) -> Result<(), End> {
        match self.lease {
            Some(lease) if !self.api.keep_alive(lease)? => {
                self.lease = None;
                let id = self.id();
                if !self.records.is_removed(&id) {
                    self.live(&id)?;
                }
            }
            Some(_) => {}
            None => drop(self.api.head(self.keys.all())?),
        }
        Ok(())
    }

    /// Carries out what was asked for.
    fn obey(&mut self) -> Result<(), End> {
        if self.is_stopped() {
            self.save(true);
            return Err(End::Stopped);
        }
        while let Ok(command) = self.mailbox.try_recv() {
            match command {
                Command::Profile(profile) => {
                    self.profile = profile;
                    self.join()?;
                    self.publish();
                }
                Command::Remove { id, force, answer } => {
                    let removed = self.remove(&id, force);
                    // Whoever asked may have gone.
                    let _ = answer.send(removed.map_err(|error| error.to_string()));
                }
                Command::Single { address, answer } => self.claims.wait(address, answer),
                Command::NextBlock { network, answer } => match self.next_block_now(&network) {
                    Ok(outcome) => drop(answer.send(outcome)),
                    Err(end) => {
                        let _ = answer.send(Err(Refused::later("the store went away")));
                        return Err(end);
                    }
                },
                Command::Lent { address, host, verdict } => self.lent(address, &host, verdict)?,
                Command::Endpoints { answer } => drop(answer.send(self.records.endpoints_but(&self.id()))),
            }
        }
        Ok(())
    }

    /// Takes a host out: its records go, its blocks are free, and it does not come back with its key.
    ///
    /// Where one transaction cannot hold them all, the first one says already that it is removed, so that it claims nothing any more, and
    /// its own record goes with the last one. Whatever dies in between leaves a host that is listed with fewer blocks, and that can be
    /// removed again.
    fn remove(&mut self, id: &str, force: bool) -> Result<Vec<IpNet>, ClaimError> {
        let (mut freed, mut late) = (Vec::new(), 0);
        while late < 8 {
            let listing = self.api.list(self.keys.all())?;
            let revision = listing.head.revision;
            let mut records = Records::new(&self.keys);
            records.replace(listing.head, listing.kvs, "");
            if records.is_alive(id) && !force {
                let message =
                    "the store has heard of it within the last half minute; --force removes it all the same".to_owned();
                return Err(ApiError::Kept(message).into());
            }
            let mut blocks = records.blocks_of(id);
            let is_last = blocks.len() <= MAX_FREED;
            blocks.truncate(MAX_FREED);
            let mut gone: Vec<String> = blocks.iter().map(|block| self.keys.block(*block)).collect();
            // Once it is removed, what it had of them may be somebody else's at any time.
            if !records.is_removed(id) {
                let singles = records.singles().filter(|(_, record)| record.owner == id);
                gone.extend(singles.map(|(address, _)| self.keys.single(address)).take(MAX_DELETED));
            }
            let (host, endpoints) = (self.keys.host(id), self.keys.endpoints(id));
            let (alive, removed) = (self.keys.alive(id), self.keys.removed(id));
            let mut writes = vec![Write::Delete(&alive), Write::Put(&removed, b"{}".to_vec())];
            writes.extend(gone.iter().map(|key| Write::Delete(key)));
            if is_last {
                writes.extend([Write::Delete(&host), Write::DeleteAll(&endpoints)]);
            }
            // No block was given to anybody since they were listed.
            if !self.api.transact(&[Guard::Unchanged(&self.keys.blocks(), revision)], &writes)? {
                late += 1;
                continue;
            }
            freed.extend(blocks);
            if is_last {
                return Ok(freed);
            }
        }
        Err(ClaimError::Late)
    }

    /// Waits, and answers that nothing can be done meanwhile; true if the agent goes.
    fn rest(&mut self, pause: Duration, error: &ApiError) -> bool {
        let until = Instant::now() + pause;
        loop {
            if self.is_stopped() {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            match self.mailbox.recv_timeout(left.min(BREATH)) {
                Ok(Command::Profile(profile)) => self.profile = profile,
                Ok(Command::Remove { answer, .. }) => {
                    let _ = answer.send(Err(format!("the store cannot be reached: {error}")));
                }
                Ok(Command::Single { answer, .. } | Command::NextBlock { answer, .. }) => {
                    let _ = answer.send(Err(Refused::later(format!("the store cannot be reached ({error})"))));
                }
                // It is asked again when the store is there.
                Ok(Command::Lent { .. }) => {}
                Ok(Command::Endpoints { answer }) => drop(answer.send(self.records.endpoints_but(&self.id()))),
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody can ask any more; the store is followed until it is told to stop.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(left.min(BREATH)),
            }
        }
    }

    fn note_trouble(&self, error: &ApiError) {
        let mut snapshot = self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let since = snapshot.trouble.as_ref().map(|(since, _)| *since);
        if since.is_none() {
            tracing::warn!("the store cannot be reached, everything stays as it was: {error}");
        }
        snapshot.trouble = Some((since.unwrap_or_else(Instant::now), error.to_string()));
        drop(snapshot);
        let _ = self.wake.try_send(());
    }

    /// The store is there.
    fn over(&self) {
        let mut snapshot = self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, _)) = snapshot.trouble.take() {
            tracing::info!("the store is there again, after {} s", since.elapsed().as_secs());
        }
        drop(snapshot);
        let _ = self.wake.try_send(());
    }

    /// Tells the agent.
    pub(super) fn publish(&self) {
        let id = self.id();
        let mut members = self.records.members();
        // What this host is it need not be told: its peers do not go because its own record is still under way, or was lost.
        if !self.records.is_removed(&id) && members.hosts.iter().all(|host| host.id != id) {
            let Own { name, keys } = self.profile.own.clone();
            let (addresses, blocks, singles) = (Vec::new(), Vec::new(), Vec::new());
            members.hosts.push(Member { id: id.clone(), name, keys, addresses, blocks, singles, seen: true });
        }
        if let Some(own) = members.hosts.iter_mut().find(|host| host.id == id) {
            let stored = std::mem::replace(&mut own.blocks, self.owned.clone());
            own.blocks.extend(stored.into_iter().filter(|block| !self.owned.contains(block)));
            let again: Vec<IpAddr> = self.claims.held.iter().filter(|it| !own.singles.contains(it)).copied().collect();
            own.singles.extend(again);
        }
        if members.subnets.is_empty() {
            members.subnets.clone_from(&self.network.subnets);
        }
        let claims = self.claims_of_others(&id);
        let mut snapshot = self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        snapshot.revision = self.records.head.revision;
        snapshot.warnings = self.warnings.iter().chain(self.settled.notes.values()).cloned().collect();
        snapshot.live = self.listed;
        if *snapshot.claims != claims {
            snapshot.claims = Arc::new(claims);
        }
        if snapshot.members.as_deref() != Some(&members) {
            snapshot.members = Some(Arc::new(members));
            snapshot.changed = Some(Instant::now());
        }
        drop(snapshot);
        let _ = self.wake.try_send(());
    }

    /// Keeps on disk what the store said, for a start without it.
    fn save(&mut self, at_once: bool) {
        let revision = self.lasting;
        if self.records.head.cluster.is_empty() {
            return;
        }
        if let Some((at, saved)) = self.saved
            && (saved == revision || (!at_once && at.elapsed() < SAVE_EVERY))
        {
            return;
        }
        let cached =
            cache::Cached { head: self.records.head.clone(), owned: self.owned.clone(), entries: self.records.lasting() };
        if let Err(error) = cache::save(&self.state_dir, self.keys.all(), &cached) {
            tracing::warn!("what the store says could not be written down: {error}");
        }
        self.saved = Some((Instant::now(), revision));
    }
}
