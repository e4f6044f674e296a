//! What the agent looks at every second: whether addresses, routes or interfaces changed, what the paths take, and what the kernel
//! refuses.
//!
//! A change makes all of it be looked at anew: our own addresses, each path's MTU, and each way of sending that was given up.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::answers::Facts;
use super::{paths, places};
use crate::config::Config;
use crate::engine::{Fallback, Handle, Unreachable};
use crate::node::Node;
use crate::sys::netlink::Monitor;

/// How often it looks: what is new is known about a second later.
pub(super) const EVERY: Duration = Duration::from_secs(1);

/// What was seen.
#[derive(Debug)]
pub(super) struct Watch {
    /// None if the kernel does not tell: then what is found by asking now and then must do.
    monitor: Option<Monitor>,
    told: Told,
}

/// Which fallbacks the log has named: each once, as one may come and go with every change of routes.
#[derive(Debug, Default)]
struct Told {
    begun: BTreeSet<Fallback>,
    ended: BTreeSet<Fallback>,
    now: BTreeSet<Fallback>,
}

/// What the log is to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum News {
    Begun(Fallback),
    Ended(Fallback),
}

impl Watch {
    /// Begins in the calling thread's network namespace.
    pub(super) fn new() -> Self {
        let monitor = Monitor::open();
        if let Err(error) = &monitor {
            tracing::warn!("changes of routes and interfaces are not heard of: {error}");
        }
        Self { monitor: monitor.ok(), told: Told::default() }
    }

    /// Looks once. Returns whether routes, addresses or interfaces changed, or may have.
    pub(super) fn look(&mut self, config: &Config, engine: &Handle<Node>, facts: &Mutex<Facts>) -> bool {
        let changed = self.monitor.as_ref().is_some_and(Monitor::has_changed);
        if changed {
            engine.retry_fallbacks();
            look_at_places(config, engine);
        }
        if let Err(error) = look_at_paths(engine, changed) {
            tracing::debug!("path MTUs: {error}");
        }
        self.note(engine, facts);
        changed
    }

    /// Takes down, for the status and the log, what does not work at the moment.
    pub(super) fn note(&mut self, engine: &Handle<Node>, facts: &Mutex<Facts>) {
        let fallbacks = engine.fallbacks();
        for news in self.told.news(&fallbacks) {
            match news {
                News::Begun(fallback) => tracing::warn!("{}", fallback.sentence()),
                News::Ended(fallback) => tracing::info!("over: {}", fallback.sentence()),
            }
        }
        let mut facts = facts.lock().unwrap_or_else(PoisonError::into_inner);
        facts.train = engine.train();
        facts.fallbacks = fallbacks;
    }
}

/// Looks where this host is.
pub(super) fn look_at_places(config: &Config, engine: &Handle<Node>) {
    if let Err(error) = places::look(config, &engine.caller()) {
        tracing::debug!("addresses: {error}");
    }
}

fn look_at_paths(engine: &Handle<Node>, changed: bool) -> Result<(), Unreachable> {
    if changed {
        engine.call(|node, _| node.routes_changed())?;
    }
    paths::look(&engine.caller())
}

impl Told {
    fn news(&mut self, fallbacks: &[Fallback]) -> Vec<News> {
        let now: BTreeSet<Fallback> = fallbacks.iter().copied().collect();
        let begun = now.iter().filter(|&&fallback| self.begun.insert(fallback)).map(|&fallback| News::Begun(fallback));
        let over = self.now.difference(&now).filter(|&&fallback| self.ended.insert(fallback));
        let news = begun.chain(over.map(|&fallback| News::Ended(fallback))).collect();
        self.now = now;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fallback_is_told_once_however_often_it_comes_and_goes() {
        use Fallback::{LongTrains, Trains};
        let mut told = Told::default();
        assert_eq!(told.news(&[]), []);
        assert_eq!(told.news(&[Trains]), [News::Begun(Trains)]);
        assert_eq!(told.news(&[Trains]), []);
        assert_eq!(told.news(&[Trains, LongTrains]), [News::Begun(LongTrains)]);
        assert_eq!(told.news(&[LongTrains]), [News::Ended(Trains)]);
        for _ in 0..2 {
            assert_eq!(told.news(&[Trains, LongTrains]), []);
            assert_eq!(told.news(&[LongTrains]), []);
        }
    }
}
