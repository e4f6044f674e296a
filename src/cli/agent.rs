//! `underpass agent`.

use super::output::complain;
use super::{AgentArgs, Exit, Places};

/// Runs the agent until a signal ends it.
pub(super) fn run(_places: &Places, arguments: &AgentArgs) -> Exit {
    complain(format_args!("{:?}", arguments.log), Exit::Failed)
}
