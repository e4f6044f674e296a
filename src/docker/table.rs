//! What is known of the containers that want an address of ours, and what is done when one of them was looked at.
//!
//! Nothing here depends on which event came: a container is looked at, and what it is now decides. So an event that is lost, comes
//! twice, or comes late does no harm, and the start of the agent is nothing special.
//!
//! ```text
//!   no label of ours        left alone
//!   labels that make no sense, a wish that cannot be met     failed, left as it is
//!   runs                    attached: its address is made, or found and adopted
//!   does not run            waiting: its interface is gone, its address stays its own
//!   does not exist          its address is released
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::api::Container;
use crate::ipam::About;
use crate::network::Labels;
use crate::network::choice::{self, Attachment, LABEL_CNI_NETWORK, LABEL_NETWORK};

/// How long to wait before a failed container is tried again: at first, and at most. What keeps it from working may be another
/// container that has its address, so it is tried for ever.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// How a container is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It has its address.
    Attached,
    /// It does not run.
    Waiting,
    /// It runs without its address, or it could not even say which one it wants.
    Failed,
    /// It had its address, and the network is gone.
    Disconnected,
}

/// A container that wants an address of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it is called besides in networks of Docker's own.
    pub aliases: Vec<String>,
    /// Its ports that Docker publishes: `8080->80/tcp`.
    pub ports: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The network, once it is known.
    pub network: Option<String>,
    /// Its addresses, also while it does not run.
    pub addresses: Vec<IpAddr>,
    /// Its interface with them.
    pub interface: Option<String>,
    /// How it is.
    pub state: State,
    /// Why, if that is not clear from the state.
    pub why: Option<String>,
}

/// What it has on the network.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Plugged {
    pub addresses: Vec<IpAddr>,
    pub interface: String,
}

/// Why it does not have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// What it asks for makes no sense, and will not later.
    Wish(String),
    /// Its network is not there.
    NoNetwork(String),
    /// It may work later.
    Trouble(String),
}

impl Refusal {
    fn text(&self) -> &str {
        let (Self::Wish(text) | Self::NoNetwork(text) | Self::Trouble(text)) = self;
        text
    }
}

/// Who does what the table decides.
pub(super) trait Hands {
    /// Where a container with this mode and these labels belongs; none if it is Docker's own business.
    fn choose(&mut self, mode: &str, labels: &Labels) -> Result<Option<Attachment>, Refusal>;

    /// Gives a running container what it wants, or finds that it has it.
    fn plug(&mut self, id: &str, namespace: &File, wish: &Attachment) -> Result<Plugged, Refusal>;

    /// Makes it ask the name servers that its network's driver names.
    fn set_names(&mut self, container: &Container, wish: &Attachment);

    /// Whether networks or the tunnel are others than when this was asked last, so that containers that have theirs want another look.
    fn has_news(&mut self) -> bool;

    /// Removes what stands on the host for a container whose namespace is gone. Its address stays its own.
    fn unplug(&mut self, id: &str);

    /// Takes back what a container had that is gone.
    fn release(&mut self, id: &str) -> Result<(), Refusal>;

    /// The containers that have addresses, as far as they were given here: by id.
    fn held(&mut self) -> Result<BTreeMap<String, Vec<IpAddr>>, Refusal>;
}

struct Entry {
    view: View,
    /// Whether something of it may stand on the host.
    plugged: bool,
    /// When it is tried again, and how long was waited for that.
    retry: Option<(Instant, Duration)>,
}

/// The containers.
pub(super) struct Table<H> {
    hands: H,
    entries: BTreeMap<String, Entry>,
}

/// Whether labels ask for a network of ours, in whatever words. Orchestrators put `annotation.` before some.
pub(super) fn is_ours(labels: &Labels) -> bool {
    let has = |label: &str| labels.contains_key(label) || labels.contains_key(&format!("annotation.{label}"));
    has(LABEL_NETWORK) || has(LABEL_CNI_NETWORK)
}

impl<H: Hands> Table<H> {
    pub(super) const fn new(hands: H) -> Self {
        Self { hands, entries: BTreeMap::new() }
    }

    /// See [`Hands::has_news`].
    pub(super) fn has_news(&mut self) -> bool {
        self.hands.has_news()
    }

    /// For people.
    pub(super) fn views(&self) -> Vec<View> {
        self.entries.values().map(|entry| entry.view.clone()).collect()
    }

    /// Whether this container concerns us.
    pub(super) fn knows(&self, id: &str) -> bool {
        self.entries.contains_key(id)
    }

    /// When somebody is to be tried again.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| entry.retry).map(|(at, _)| at).min()
    }

    /// Who is to be tried again now.
    pub(super) fn due(&self, now: Instant) -> Vec<String> {
        let due = self.entries.iter().filter(|(_, entry)| entry.retry.is_some_and(|(at, _)| at <= now));
        due.map(|(id, _)| id.clone()).collect()
    }

    /// These are all the containers that there are: what others had is taken back.
    pub(super) fn only(&mut self, living: &BTreeSet<&str>) {
        let held = match self.hands.held() {
            Ok(held) => held,
            Err(refusal) => {
                tracing::warn!("Docker: addresses of containers that are gone stay taken: {}", refusal.text());
                BTreeMap::new()
            }
        };
        let known = self.entries.keys().chain(held.keys());
        let gone: BTreeSet<String> = known.filter(|id| !living.contains(id.as_str())).cloned().collect();
        for id in gone {
            self.gone(&id);
        }
    }

    /// A container does not exist any more.
    pub(super) fn gone(&mut self, id: &str) {
        self.hands.unplug(id);
        match self.hands.release(id) {
            Ok(()) => {
                if let Some(entry) = self.entries.remove(id) {
                    tracing::info!("Docker: {} is gone", entry.view.title());
                }
            }
            // It is taken back when all containers are listed next.
            Err(refusal) => tracing::warn!("Docker: container {}: its address stays taken: {}", short(id), refusal.text()),
        }
    }

    /// A container was looked at; `open` opens the namespace of its first process.
    pub(super) fn seen(&mut self, container: &Container, now: Instant, open: impl FnOnce() -> Result<Option<File>, String>) {
        let id = &container.id;
        if !is_ours(container.labels()) {
            return;
        }
        let wish = match self.hands.choose(&container.host_config.network_mode, container.labels()) {
            Ok(Some(wish)) => wish,
            Ok(None) => return,
            Err(refusal) => return self.refused(container, None, refusal, now),
        };
        if container.pid().is_none() {
            return self.waits(container, &wish);
        }
        let namespace = match open() {
            Ok(Some(namespace)) => namespace,
            // It ended a moment ago: an event says so soon.
            Ok(None) => return self.waits(container, &wish),
            Err(text) => return self.refused(container, Some(&wish), Refusal::Trouble(text), now),
        };
        match self.hands.plug(id, &namespace, &wish) {
            Ok(plugged) => {
                let Plugged { addresses, interface } = plugged;
                let entry = self.entry(container, Some(&wish));
                entry.view.addresses = addresses;
                entry.view.interface = Some(interface);
                (entry.plugged, entry.retry) = (true, None);
                entry.turn(State::Attached, None);
                self.hands.set_names(container, &wish);
            }
            Err(refusal) => self.refused(container, Some(&wish), refusal, now),
        }
    }

    fn entry(&mut self, container: &Container, wish: Option<&Attachment>) -> &mut Entry {
        let id = &container.id;
        let new = || Entry {
            view: View {
                id: id.clone(),
                name: String::new(),
                aliases: Vec::new(),
                ports: Vec::new(),
                labels: BTreeMap::new(),
                network: None,
                addresses: Vec::new(),
                interface: None,
                state: State::Waiting,
                why: None,
            },
            plugged: true,
            retry: None,
        };
        let entry = self.entries.entry(id.clone()).or_insert_with(new);
        container.name().clone_into(&mut entry.view.name);
        About { aliases: entry.view.aliases, ports: entry.view.ports, .. } = container.about();
        entry.view.labels.clone_from(container.labels());
        if let Some(wish) = wish {
            entry.view.network = Some(wish.network.clone());
        }
        entry
    }

    /// It does not run.
    fn waits(&mut self, container: &Container, wish: &Attachment) {
        let held = self.hands.held().unwrap_or_default().remove(&container.id);
        let entry = self.entry(container, Some(wish));
        let plugged = std::mem::replace(&mut entry.plugged, false);
        entry.view.interface = None;
        entry.retry = None;
        let why = match held {
            Some(addresses) => {
                entry.view.addresses = addresses;
                "it does not run; its address stays its own"
            }
            None => "it does not run yet",
        };
        entry.turn(State::Waiting, Some(why.to_owned()));
        if plugged {
            self.hands.unplug(&container.id);
        }
    }

    fn refused(&mut self, container: &Container, wish: Option<&Attachment>, refusal: Refusal, now: Instant) {
        let entry = self.entry(container, wish);
        entry.retry = match refusal {
            Refusal::Wish(_) => None,
            Refusal::NoNetwork(_) | Refusal::Trouble(_) => {
                let pause = entry.retry.map_or(RETRY.0, |(_, pause)| (pause * 2).min(RETRY.1));
                Some((now + pause, pause))
            }
        };
        let had_it = !entry.view.addresses.is_empty();
        let state = match refusal {
            Refusal::NoNetwork(_) if had_it => State::Disconnected,
            _ => State::Failed,
        };
        entry.turn(state, Some(refusal.text().to_owned()));
    }
}

impl Entry {
    /// Takes a state, and tells the log if it is another one.
    fn turn(&mut self, state: State, why: Option<String>) {
        if (self.view.state, &self.view.why) == (state, &why) {
            return;
        }
        self.view.state = state;
        self.view.why = why;
        let (title, network) = (self.view.title(), self.view.network.as_deref().unwrap_or("-"));
        let why = self.view.why.as_deref().unwrap_or_default();
        match state {
            State::Attached => {
                let addresses: Vec<String> = self.view.addresses.iter().map(ToString::to_string).collect();
                tracing::info!("Docker: {title} has {} on network {network}", addresses.join(", "));
            }
            State::Waiting => tracing::debug!("Docker: {title} waits: {why}"),
            State::Failed => tracing::warn!("Docker: {title} is left as it is: {why}"),
            State::Disconnected => tracing::warn!("Docker: {title} is disconnected: {why}"),
        }
    }
}

impl View {
    fn title(&self) -> String {
        format!("container {} ({})", self.name, short(&self.id))
    }
}

/// An id as people write it.
pub(super) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// A choice in the words of the table.
pub(super) fn refusal(error: &choice::ChoiceError) -> Refusal {
    use choice::ChoiceError;
    match error {
        ChoiceError::Unknown { .. } | ChoiceError::NoManaged => Refusal::NoNetwork(error.to_string()),
        _ => Refusal::Wish(error.to_string()),
    }
}
