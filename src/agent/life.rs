//! An agent from its start to its end.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select, tick};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle as SignalsHandle, Signals};

use super::answers::{Answers, Facts};
use super::barrier::Barrier;
use super::census::Census;
use super::containers::{Containers, foreign_bridges};
use super::delivery::Delivery;
use super::docker::Docker;
use super::neighbours::Neighbours;
use super::plumbing::{self, Plumbing};
use super::rotation::{self, HOST_KEY_OLD};
use super::watch::{self, Watch};
use super::wish::Wish;
use super::{AgentError, Options, OsRng, desired, drivers, files, paths, preflight};
use crate::config::{Config, Message, Overlay, Report, Severity};
use crate::control::{Counters, Server};
use crate::crypto::SigningKey;
use crate::docker::Watcher;
use crate::engine::{Engine, Handle};
use crate::model;
use crate::node::Node;
use crate::observe::{Tun, counted};

/// How long the engine's threads may take to end: they only finish what they have in hand.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// Signals that wait; the kernel keeps one more of each kind.
const SIGNALS: usize = 8;

/// How the warning begins that the running configuration is not the one in the file.
const UNREAD: &str = "the configuration stays as it was";

/// Runs an agent until a signal ends it.
///
/// # Errors
/// Why it did not start, or what failed. Nothing that it set up is left behind.
pub fn run(options: &Options) -> Result<(), AgentError> {
    // A signal that comes while we start is kept.
    let signals = SignalThread::start()?;
    let (base, report) = load(&options.config)?;
    preflight::check_rights()?;
    let _lock = preflight::lock(&options.run_dir)?;
    let (host_keys, mut warnings) = check(&base, report, &options.state_dir)?;
    let mut wish = Wish::new(base, host_keys, &options.state_dir)?;
    let mut agent = Agent::start(&wish, options, &mut warnings)?;
    let watcher = agent.watch_docker(&wish.config, options);
    tracing::info!(
        "{} runs with {} on {} as {}",
        wish.config.host.name,
        counted(wish.config.peers.len(), "peer"),
        agent.engine.tun_name(),
        counted(desired::workers(&wish.config), "worker")
    );
    notify(&[NotifyState::Ready, NotifyState::Status("running")]);
    let outcome = agent.live(&signals.receiver, options, &mut wish);
    notify(&[NotifyState::Stopping]);
    drop(watcher);
    let stopped = agent.stop();
    outcome.and(stopped)
}

/// Reads the configuration; errors in it are one error with many lines.
fn load(path: &Path) -> Result<(Config, Report), AgentError> {
    let (config, report) = files::load_config(path).map_err(preflight::unreadable(path))?;
    match config {
        Some(config) => Ok((config, report)),
        None => Err(AgentError::Config(report)),
    }
}

/// Holds the configuration against this host, and finds the key that it needs. The warnings are for the status.
fn check(config: &Config, mut report: Report, state_dir: &Path) -> Result<(Vec<SigningKey>, Vec<String>), AgentError> {
    preflight::check_interfaces(config, &mut report)?;
    let host_keys = if desired::wants_host_key(config) { host_keys(state_dir)? } else { Vec::new() };
    desired::check_host_keys(config, &host_keys, &mut report);
    if report.has_errors() {
        return Err(AgentError::Config(report));
    }
    let warnings = report.messages.iter().filter(|message| message.severity == Severity::Warning);
    let place = |message: &Message| message.file.as_ref().map_or(String::new(), |_| message.place(&report.file) + ": ");
    let warnings = warnings.map(|message| format!("{}{}: {}", place(message), message.key, message.text));
    let warnings: Vec<String> = warnings.collect();
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    Ok((host_keys, warnings))
}

/// The host's key, made if there is none yet; and the one before it, for peers that do not know the new one, until
/// `underpass key rotate --finish` removes it.
fn host_keys(state_dir: &Path) -> Result<Vec<SigningKey>, AgentError> {
    let key = match files::load_host_key(state_dir) {
        Err(files::HostKeyError::Missing(path)) => {
            let key = files::generate_host_key(state_dir, false)?;
            let public = key.verifying_key().to_base64();
            tracing::info!("made a host key in {}; its public half, for the peers: {public}", path.display());
            key
        }
        other => other?,
    };
    let old = rotation::load(state_dir, HOST_KEY_OLD)?.filter(|old| *old != key);
    Ok([key].into_iter().chain(old).collect())
}

/// A running agent. Dropped in this order: nobody asks any more, nothing runs any more, nothing is left.
struct Agent {
    control: Server,
    engine: Handle<Node>,
    delivery: Delivery,
    plumbing: Plumbing,
    facts: Arc<Mutex<Facts>>,
    census: Arc<Census>,
    /// What is ours as container runtimes know it; none if something was in the way of telling them.
    told: Option<Overlay>,
}

impl Agent {
    fn start(wish: &Wish, options: &Options, warnings: &mut Vec<String>) -> Result<Self, AgentError> {
        let started = Instant::now();
        let config = &wish.config;
        let tun_mtu = paths::tun_mtu(config);
        let mut node = Node::new(model::Instant::ORIGIN, desired::node(config, tun_mtu), Box::new(OsRng), Box::new(OsRng));
        let peers = desired::peers(config, &wish.host_keys);
        node.reconfigure(model::Instant::ORIGIN, config.overlay.prefixes(), peers);
        let engine = Engine::start(&desired::engine(config, tun_mtu), node)?;
        let bridges = foreign_bridges(&options.state_dir);
        let (engine, plumbing) = plumb(engine, config, tun_mtu, bridges, warnings)?;
        let tun = Tun {
            name: engine.tun_name().to_owned(),
            mtu: tun_mtu,
            queues: desired::workers(config).into(),
            backend: config.tun.backend.name().to_owned(),
            offloads: Vec::new(),
            txqueuelen_wanted: Some(plumbing::TX_QUEUE),
            txqueuelen: plumbing.tx_queue(),
        };
        let docker = Docker::of(config);
        let census = Arc::new(Census::new(&options.state_dir, wish.asker(), docker.clone()));
        // What other hosts have out of a block is theirs before anybody here can get it.
        let (claims, live) = wish.claims();
        let loan_warnings = census.lend(claims, *live).unwrap_or_default();
        // Who finds an answer at the control socket finds the networks, too.
        let driver_warnings = apply_drivers(config, options, &census);
        let told = Some(config.overlay.clone()).filter(|_| driver_warnings.is_empty());
        engine.test_device();
        let buffers = engine.buffers();
        warnings.extend(plumbing::queue_hints(&tun, buffers));
        let mut facts = Facts {
            host: String::new(),
            advertise: Vec::new(),
            addresses: Default::default(),
            tun,
            buffers,
            train: engine.train(),
            fallbacks: engine.fallbacks(),
            table: plumbing.table().to_owned(),
            docker,
            loan_warnings,
            warnings: std::mem::take(warnings),
            driver_warnings,
            barrier_warnings: Vec::new(),
            neighbour_warnings: Vec::new(),
            store: None,
            store_warnings: Vec::new(),
        };
        facts.describe(wish);
        let facts = Arc::new(Mutex::new(facts));
        let counters = Arc::new(Counters::default());
        let answers = Answers {
            caller: engine.caller(),
            census: Arc::clone(&census),
            facts: Arc::clone(&facts),
            started,
            state_dir: options.state_dir.clone(),
            drops: engine.drops().to_vec(),
            counters: Arc::clone(&counters),
        };
        let control = match Server::start(&options.run_dir, Arc::new(answers), counters) {
            Ok(control) => control,
            Err(error) => {
                let _ = engine.stop(STOP_PATIENCE);
                return Err(error.into());
            }
        };
        Ok(Self { control, engine, delivery: Delivery::default(), plumbing, facts, census, told })
    }

    /// Waits for signals and for threads that end, and looks around meanwhile.
    fn live(&mut self, signals: &Receiver<i32>, options: &Options, wish: &mut Wish) -> Result<(), AgentError> {
        let looks = tick(watch::EVERY);
        let mut watch = Watch::new();
        watch.note(&self.engine, &self.facts);
        watch::look_at_places(&wish.config, &self.engine);
        let news = wish.news();
        let mut containers = Containers::new(&options.state_dir, &wish.config.tun.name);
        let (mut barrier, mut neighbours) = (Barrier::default(), Neighbours::default());
        self.look_at_containers(&mut containers, wish, true);
        loop {
            select! {
                recv(looks) -> _ => {
                    self.look_at_store(wish, options);
                    let changed = watch.look(&wish.config, &self.engine, &self.facts);
                    self.look_at_containers(&mut containers, wish, changed);
                    if let Some(warnings) = barrier.look(&wish.config, &self.engine, changed) {
                        self.facts.lock().unwrap_or_else(PoisonError::into_inner).barrier_warnings = warnings;
                    }
                    if let Some(warnings) = neighbours.look() {
                        self.facts.lock().unwrap_or_else(PoisonError::into_inner).neighbour_warnings = warnings;
                    }
                }
                recv(news) -> _ => self.look_at_store(wish, options),
                recv(signals) -> signal => match signal {
                    Ok(SIGHUP) => self.reload(options, wish),
                    Ok(signal) => {
                        tracing::info!("stopping on {}", signal_name(signal));
                        return Ok(());
                    }
                    Err(_) => return Err(AgentError::Failed("the thread that receives signals ended".to_owned())),
                },
                recv(self.engine.ended()) -> ended => {
                    let text = match ended {
                        Ok(ended) => {
                            let why = ended.failure.unwrap_or_else(|| "it was told to".to_owned());
                            format!("the thread {} ended: {why}", ended.thread)
                        }
                        Err(_) => "the engine's threads ended".to_owned(),
                    };
                    return Err(AgentError::Failed(text));
                }
            }
        }
    }

    /// Reads the configuration again. One that cannot be used changes nothing.
    fn reload(&mut self, options: &Options, wish: &mut Wish) {
        let clock = NotifyState::monotonic_usec_now();
        let reloading: Vec<NotifyState<'_>> = [NotifyState::Reloading].into_iter().chain(clock).collect();
        notify(&reloading);
        if let Err(error) = self.try_reload(options, wish) {
            let why = error.to_string();
            let warning = format!("{UNREAD}: {}", why.trim_end());
            tracing::error!("{warning}");
            let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
            facts.warnings.retain(|old| !old.starts_with(UNREAD));
            facts.warnings.push(warning);
        }
        notify(&[NotifyState::Ready]);
    }

    fn try_reload(&mut self, options: &Options, wish: &mut Wish) -> Result<(), AgentError> {
        let (mut new, report) = load(&options.config)?;
        let kept = desired::keep_running_parts(&wish.base, &mut new);
        let (host_keys, mut warnings) = check(&new, report, &options.state_dir)?;
        for key in kept {
            let warning = format!("{key} changed in the configuration: that takes effect when the agent starts next");
            tracing::warn!("{warning}");
            warnings.push(warning);
        }
        wish.change(new, host_keys);
        warnings.extend(self.apply(wish)?);
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).warnings = warnings;
        self.apply_drivers(&wish.config, options);
        tracing::info!("read the configuration again: {}", counted(wish.config.peers.len(), "peer"));
        Ok(())
    }

    /// Makes true what is wanted now. What the kernel refused is returned in words.
    fn apply(&mut self, wish: &Wish) -> Result<Vec<String>, AgentError> {
        // The node before the routes: a packet that is routed to us early would be a drop.
        let peers = desired::peers(&wish.config, &wish.host_keys);
        let prefixes = wish.config.overlay.prefixes();
        self.engine.ask(move |node, now| node.reconfigure(now, prefixes, peers))?;
        let complaints = self.plumbing.change(&wish.config);
        for complaint in &complaints {
            tracing::warn!("{complaint}");
        }
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).describe(wish);
        Ok(complaints)
    }

    /// Takes over what the store says anew, and tells it what is used here.
    fn look_at_store(&mut self, wish: &mut Wish, options: &Options) {
        let is_open = wish.look();
        let (claims, live) = wish.claims();
        if let Some(warnings) = self.census.lend(claims, *live) {
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            self.facts.lock().unwrap_or_else(PoisonError::into_inner).loan_warnings = warnings;
        }
        if is_open {
            match self.apply(wish) {
                Ok(complaints) => {
                    wish.done();
                    self.facts.lock().unwrap_or_else(PoisonError::into_inner).store_warnings.extend(complaints);
                    // Other hosts mean nothing to runtimes.
                    if self.told.as_ref() != Some(&wish.config.overlay) {
                        self.apply_drivers(&wish.config, options);
                    }
                    tracing::info!("the store has news: {}", counted(wish.config.peers.len(), "peer"));
                }
                // It stays to be done, and is tried again at the next look.
                Err(error) => tracing::warn!("what the store says is not in effect yet: {error}"),
            }
        }
        self.delivery.look(&wish.config);
        self.census.look();
    }

    /// Looks after the containers that run. What the kernel refuses is tried again when something has changed.
    fn look_at_containers(&mut self, containers: &mut Containers, wish: &Wish, changed: bool) {
        if containers.keep_fence() {
            for complaint in self.plumbing.keep_guard(&wish.config) {
                tracing::warn!("{complaint}");
            }
        }
        let Some(bridges) = containers.look(changed) else { return };
        for complaint in self.plumbing.trust(&wish.config, bridges) {
            tracing::warn!("{complaint}");
        }
    }

    /// Lets container runtimes and CNI plugins know what is ours.
    fn apply_drivers(&mut self, config: &Config, options: &Options) {
        let warnings = apply_drivers(config, options, &self.census);
        self.told = Some(config.overlay.clone()).filter(|_| warnings.is_empty());
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).driver_warnings = warnings;
    }

    /// Gives containers of Docker their addresses from now on, if that is wanted.
    fn watch_docker(&self, config: &Config, options: &Options) -> Option<Watcher> {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        match facts.docker.as_ref()?.watch(config, &options.state_dir, &self.census) {
            Ok(watcher) => Some(watcher),
            Err(warning) => {
                tracing::warn!("{warning}");
                facts.warnings.push(warning);
                None
            }
        }
    }

    /// Tells the peers, ends the threads, and takes everything back.
    fn stop(self) -> Result<(), AgentError> {
        let Self { control, engine, plumbing, delivery, .. } = self;
        drop(control);
        // Without a control thread there is nobody who could tell them.
        let told = engine.ask(|node, now| node.close_all(now));
        if let Err(error) = told {
            tracing::warn!("the peers were not told: {error}");
        }
        let stopped = engine.stop(STOP_PATIENCE);
        drop(delivery);
        drop(plumbing);
        stopped.map_err(|failed| {
            let text = |ended: crate::engine::Ended| format!("{}: {}", ended.thread, ended.failure.unwrap_or_default());
            AgentError::Failed(failed.into_iter().map(text).collect::<Vec<_>>().join("; "))
        })
    }
}

/// Sets up the kernel's side for an engine, which is stopped if that fails.
fn plumb(
    engine: Handle<Node>,
    config: &Config,
    tun_mtu: u16,
    bridges: Vec<String>,
    warnings: &mut Vec<String>,
) -> Result<(Handle<Node>, Plumbing), AgentError> {
    // The guard's table is named after the device: only who has the one may replace the other, or take it away.
    match Plumbing::new(config, tun_mtu, bridges) {
        Ok((plumbing, unguarded)) => {
            warnings.extend(unguarded);
            Ok((engine, plumbing))
        }
        Err(error) => {
            // Its own failures would only hide this one.
            let _ = engine.stop(STOP_PATIENCE);
            Err(error)
        }
    }
}

/// Lets container runtimes and CNI plugins know what is ours, and what a store has besides.
fn apply_drivers(config: &Config, options: &Options, census: &Census) -> Vec<String> {
    let mut warnings = drivers::apply(config, options);
    if let Err(error) = census.tell_plugins(&config.overlay.beyond) {
        warnings.push(format!("CNI plugins do not know what the store has: {error}"));
    }
    warnings
}

/// Tells the service manager, if there is one.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("telling the service manager: {error}");
    }
}

fn signal_name(signal: i32) -> &'static str {
    signal_hook::low_level::signal_name(signal).unwrap_or("a signal")
}

/// Signals as messages on a channel; dropping it ends the thread.
struct SignalThread {
    receiver: Receiver<i32>,
    handle: SignalsHandle,
}

impl SignalThread {
    fn start() -> Result<Self, AgentError> {
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(AgentError::Signals)?;
        let handle = signals.handle();
        let (sender, receiver) = bounded(SIGNALS);
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || forward(signals, &sender))
            .map_err(AgentError::Signals)?;
        Ok(Self { receiver, handle })
    }
}

impl Drop for SignalThread {
    fn drop(&mut self) {
        self.handle.close();
    }
}

fn forward(mut signals: Signals, sender: &Sender<i32>) {
    for signal in signals.forever() {
        if sender.send(signal).is_err() {
            return;
        }
    }
}
