//! What the kernel tells about the machine and about a process.

use std::fs;

use serde::Serialize;

/// Clock ticks per second in `/proc/PID/stat`: USER_HZ, the same on every architecture that we run on.
const USER_HZ: f64 = 100.0;

/// Where the figures were taken.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Cores that we may use.
    pub cores: usize,
    /// The kernel's version.
    pub kernel: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            processor: processor_name(&processor).unwrap_or("an unknown processor").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: format!("Linux {}", kernel.trim()),
        }
    }
}

fn processor_name(cpuinfo: &str) -> Option<&str> {
    let named = |line: &'_ str| line.starts_with("model name");
    cpuinfo.lines().find(|line| named(line))?.split_once(':').map(|(_, name)| name.trim())
}

/// Processor time that these processes have used in their lives, in seconds.
pub fn cpu_seconds(processes: &[u32]) -> f64 {
    let seconds = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        ticks(&stat).map_or(0.0, |ticks| ticks as f64 / USER_HZ)
    };
    processes.iter().map(seconds).sum()
}

/// User and system time, fields 14 and 15; the name in parentheses may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// The most memory that any of these processes ever held at one time, in MiB.
pub fn peak_mib(processes: &[u32]) -> Option<f64> {
    let peak = |pid: &u32| peak_kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?);
    processes.iter().filter_map(peak).max().map(|kib| kib as f64 / 1024.0)
}

fn peak_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_understood() {
        assert_eq!(processor_name("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"), Some("Some CPU @ 2 GHz"));
        assert_eq!(ticks("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 120 34 0 0"), Some(154));
        assert_eq!(ticks("nothing"), None);
        assert_eq!(peak_kib("VmPeak:\t 9 kB\nVmHWM:\t    2048 kB\n"), Some(2048));
    }

    #[test]
    fn this_process_has_time_and_memory() {
        let own = [std::process::id()];
        let begin = std::time::Instant::now();
        while cpu_seconds(&own) == 0.0 {
            assert!(begin.elapsed().as_secs() < 10);
        }
        assert!(peak_mib(&own).unwrap() > 1.0);
        assert_eq!((cpu_seconds(&[]), peak_mib(&[])), (0.0, None));
        let here = Machine::here();
        assert!(here.cores > 0 && here.kernel.len() > "Linux ".len(), "{here:?}");
    }
}
