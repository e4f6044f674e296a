//! The watch: connected to Docker, or on the way to be.
//!
//! First the events are asked for, then the list of all containers is read, and then the events as they come. So nothing that happens
//! meanwhile is missed. When the stream breaks, as when Docker is restarted, all of that begins again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::api::{Container, Docker, DockerError, Event, Next};
use super::http::Stop;
use super::table::{Hands, Table, is_ours, short};
use super::{Link, Report};

/// How long to wait before Docker is asked again: at first, and at most. A connection that is refused costs next to nothing.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How often everything is looked at without an event, as a net.
const RESYNC: Duration = Duration::from_secs(60);

/// How often is looked whether networks or the tunnel changed.
const NEWS: Duration = Duration::from_secs(1);

/// How long to leave a container alone of which Docker said nothing in time.
const SILENCE: Duration = Duration::from_secs(5);

/// Watches one daemon until it is told to stop.
pub(super) struct Watch<H> {
    socket: PathBuf,
    table: Table<H>,
    /// Containers of which Docker said nothing in time, as it is busy with them; when to ask again.
    silent: BTreeMap<String, Instant>,
    /// What others see.
    report: Arc<Mutex<Report>>,
}

impl<H: Hands> Watch<H> {
    pub(super) const fn new(socket: PathBuf, hands: H, report: Arc<Mutex<Report>>) -> Self {
        Self { socket, table: Table::new(hands), silent: BTreeMap::new(), report }
    }

    /// Returns when told to stop.
    pub(super) fn run(&mut self, stop: &Stop) {
        let mut pause = RETRY.0;
        let mut told = String::new();
        loop {
            let error = match self.watch(stop, &mut pause, &mut told) {
                Ok(()) => "the stream of events ended".to_owned(),
                Err(error) if error.is_stop() => return,
                Err(error) => error.to_string(),
            };
            // The same trouble again is no news.
            if told != error {
                tracing::warn!("Docker: {error}; trying again");
                told.clone_from(&error);
            }
            self.tell(Link::Away(error));
            if stop.wait(Instant::now() + pause).is_err() {
                return;
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// One connection, from its beginning to its end.
    fn watch(&mut self, stop: &Stop, pause: &mut Duration, told: &mut String) -> Result<(), DockerError> {
        let docker = Docker::connect(&self.socket, stop)?;
        let mut events = docker.events()?;
        self.sync(&docker)?;
        tracing::info!("Docker: watching the containers of {}", self.socket.display());
        *pause = RETRY.0;
        told.clear();
        let (mut resync, mut news) = (Instant::now() + RESYNC, Instant::now() + NEWS);
        loop {
            self.tell(Link::Watching);
            let others = self.table.next_retry().into_iter().chain(self.silent.values().copied());
            let until = others.fold(resync.min(news), Instant::min);
            match events.next(Some(until))? {
                Next::Event(event) => self.heard(&docker, &event)?,
                Next::Ended => return Ok(()),
                Next::Nothing => {}
            }
            let now = Instant::now();
            let silent = self.silent.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone());
            for id in silent.chain(self.table.due(now)).collect::<BTreeSet<_>>() {
                self.look(&docker, &id)?;
            }
            let is_new = now >= news && self.table.has_news();
            if now >= news {
                news = now + NEWS;
            }
            if is_new || now >= resync {
                self.sync(&docker)?;
                resync = now + RESYNC;
            }
        }
    }

    /// Looks at every container, and takes back what those had that are gone.
    fn sync(&mut self, docker: &Docker<'_>) -> Result<(), DockerError> {
        let all = docker.containers()?;
        let ids: BTreeSet<&str> = all.iter().map(|listed| listed.id.as_str()).collect();
        self.table.only(&ids);
        for listed in all.iter().filter(|listed| listed.labels.as_ref().is_some_and(is_ours)) {
            self.look(docker, &listed.id)?;
        }
        Ok(())
    }

    /// Something happened to somebody: it is looked at if it concerns us.
    fn heard(&mut self, docker: &Docker<'_>, event: &Event) -> Result<(), DockerError> {
        if self.table.knows(&event.container) || event.labels.as_ref().is_some_and(is_ours) {
            self.look(docker, &event.container)?;
        }
        Ok(())
    }

    /// Looks at one container. Docker's silence about one, such as one whose start hangs, must not cost the others theirs.
    fn look(&mut self, docker: &Docker<'_>, id: &str) -> Result<(), DockerError> {
        self.silent.remove(id);
        match self.try_look(docker, id) {
            Err(error) if error.is_late() => {
                tracing::warn!("Docker: container {}: {error}", short(id));
                self.silent.insert(id.to_owned(), Instant::now() + SILENCE);
                Ok(())
            }
            other => other,
        }
    }

    fn try_look(&mut self, docker: &Docker<'_>, id: &str) -> Result<(), DockerError> {
        let Some(container) = docker.container(id)? else {
            self.table.gone(id);
            return Ok(());
        };
        let mut failed = None;
        self.table.seen(&container, Instant::now(), || {
            namespace(docker, &container).or_else(|error| match error {
                Trouble::Docker(error) => {
                    failed = Some(error);
                    Ok(None)
                }
                Trouble::Io(error) => Err(format!("its network namespace: {error}")),
            })
        });
        failed.map_or(Ok(()), Err)
    }

    fn tell(&self, link: Link) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        *report = Report { link, containers: self.table.views() };
    }
}

enum Trouble {
    Docker(DockerError),
    Io(io::Error),
}

/// The namespace of a container's first process; none if that ended meanwhile.
///
/// A process number means somebody else once its process is gone. So the namespace is opened first, and then Docker is asked again: if the
/// process is still the container's, it was when we opened.
fn namespace(docker: &Docker<'_>, container: &Container) -> Result<Option<File>, Trouble> {
    let Some(pid) = container.pid() else { return Ok(None) };
    let opened = File::open(Path::new("/proc").join(pid.to_string()).join("ns/net"));
    let again = docker.container(&container.id).map_err(Trouble::Docker)?;
    let same = |again: &Container| again.pid() == Some(pid) && again.state.started_at == container.state.started_at;
    if !again.as_ref().is_some_and(same) {
        return Ok(None);
    }
    opened.map(Some).map_err(Trouble::Io)
}
