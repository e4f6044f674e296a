//! `underpass agent`.

use tracing::level_filters::LevelFilter;

use super::output::complain;
use super::{AgentArgs, Exit, LogLevel, Places};
use crate::agent::{self, AgentError, FailureKind, Options};
use crate::observe::init_log;

/// Runs the agent until a signal ends it.
pub(super) fn run(places: &Places, arguments: &AgentArgs) -> Exit {
    if places.json {
        return complain("the agent prints no data: --json is for the commands that ask it", Exit::Usage);
    }
    init_log(match arguments.log {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    });
    let options =
        Options { config: arguments.config.clone(), run_dir: places.run_dir.clone(), state_dir: places.state_dir.clone() };
    match agent::run(&options) {
        Ok(()) => Exit::Fine,
        // Lines that begin with file:line, which editors and eyes know.
        Err(AgentError::Config(report)) => {
            complain(format_args!("the configuration cannot be used\n{}", report.to_string().trim_end()), Exit::BadConfig)
        }
        Err(error) => complain(&error, error.kind().into()),
    }
}

impl From<FailureKind> for Exit {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::BadConfig => Self::BadConfig,
            FailureKind::NotPermitted => Self::NotPermitted,
            FailureKind::Other => Self::Failed,
        }
    }
}
