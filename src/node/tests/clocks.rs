//! Clocks that jump, hosts that sleep, and hosts that are killed at every step of a rekey (bad inputs 118 to 120). Each is a schedule,
//! with all that must hold after one: packets pass soon, one SA a pair, nothing lost by the rekeys that follow.

use std::time::Duration;

use super::SECONDS;
use crate::node::Rekey;
use crate::node::simulation::schedule::{Schedule, Step};

const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn must_hold(seed: u64, steps: Vec<Step>) {
    // Two hosts with host keys and one worker, and the usual lifetimes.
    let schedule = Schedule { steps, ..Schedule::of_octets(seed, &[0, 2, 0, 1, 2, 0], 2) };
    if let Err(why) = schedule.play() {
        panic!("{why}\n{:?}\n{}", schedule.steps, schedule.story());
    }
}

/// The wall clock is nobody's argument below the engine, so that it may say what it likes; here it is the monotonic one that jumps, as
/// it should never do.
#[test]
fn case_118_clocks_that_jump_ten_years() {
    for by in [10 * YEAR, YEAR, SECONDS(3600)] {
        for both in [false, true] {
            let jump = [Step::Jump(1, by)].into_iter().chain(both.then_some(Step::Jump(2, by)));
            must_hold(1, [Step::Wait(SECONDS(10))].into_iter().chain(jump).chain([Step::Wait(SECONDS(1))]).collect());
        }
        // In the middle of a rekey.
        must_hold(
            2,
            vec![Step::Wait(SECONDS(10)), Step::Hold, Step::Rekey(1, 2, Rekey::Ike), Step::Deliver(0), Step::Jump(2, by)],
        );
    }
}

/// Ten years back are ten years before the start for one that has just booted: its clock stands at zero.
#[test]
fn case_118_a_clock_that_starts_at_zero() {
    must_hold(3, vec![]);
    // A host that boots when the others have been up for long: its clock is as far behind as it can be.
    must_hold(4, vec![Step::Wait(SECONDS(1)), Step::Sleep(1, SECONDS(1)), Step::Jump(2, 10 * YEAR), Step::Crash(1)]);
}

#[test]
fn case_119_a_host_that_sleeps_for_an_hour() {
    for (first, second) in [(1, None), (2, None), (1, Some(2))] {
        let mut steps = vec![Step::Wait(SECONDS(10)), Step::Sleep(first, SECONDS(3600))];
        steps.extend(second.map(|second| Step::Sleep(second, SECONDS(3600))));
        steps.push(Step::Wait(SECONDS(3599)));
        must_hold(5, steps);
    }
    // A clock that goes on meanwhile, as the one that counts the time of sleep does.
    let (hour, asleep) = (SECONDS(3600), Step::Sleep(1, SECONDS(3600)));
    must_hold(6, vec![Step::Wait(SECONDS(10)), asleep, Step::Wait(hour), Step::Jump(1, hour)]);
}

#[test]
fn case_120_kill_at_every_step_of_a_rekey() {
    for what in [Rekey::Child, Rekey::Ike] {
        for killed in [1, 2] {
            for both in [false, true] {
                // An IKE rekey with two exchanges has most: nine datagrams, and the Delete.
                for step in 0..14 {
                    let rekey = if both { Step::RekeyBoth(1, 2, what) } else { Step::Rekey(1, 2, what) };
                    let mut steps = vec![Step::Wait(SECONDS(10)), Step::Hold, rekey];
                    // What workers say comes in between.
                    steps.extend((0..step).flat_map(|_| [Step::Deliver(0), Step::Wait(Duration::from_millis(5))]));
                    steps.extend([Step::Crash(killed), Step::Release]);
                    must_hold(step, steps);
                }
            }
        }
    }
}
