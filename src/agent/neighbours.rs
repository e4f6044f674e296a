//! Whether the kernel's tables of neighbours are full.
//!
//! All network namespaces of a machine share one table a family, of 1024 entries unless somebody said otherwise, and a container needs two or
//! three: its own of whomever it talks to, and the host's of it. Beyond some 350 containers the kernel answers no ARP for a second or
//! more at a time, and says so nowhere but in a counter. So the counter is looked at.

use std::fs;
use std::time::{Duration, Instant};

/// Looked at so often.
const EVERY: Duration = Duration::from_secs(5);

/// A table that was full so long ago is not full any more.
const MEMORY: Duration = Duration::from_secs(60);

/// What holds for more containers than a bridge has ports (1024).
const ROOM: [u32; 2] = [4096, 8192];

/// The kernel's counters, the family's name in its settings, and in words.
const FAMILIES: [(&str, &str, &str); 2] =
    [("/proc/net/stat/arp_cache", "ipv4", "IPv4"), ("/proc/net/stat/ndisc_cache", "ipv6", "IPv6")];

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    looked: Option<Instant>,
    tables: [Table; 2],
    told: Vec<String>,
}

/// One family's table.
#[derive(Clone, Copy, Debug, Default)]
struct Table {
    /// How often it was full at the last look.
    count: Option<u64>,
    /// When that was more than before.
    full: Option<Instant>,
}

impl Neighbours {
    /// Looks if it is time for that. Returns which tables are full, in words, if that is another answer than before.
    pub(super) fn look(&mut self) -> Option<Vec<String>> {
        let now = Instant::now();
        if self.looked.is_some_and(|looked| now.duration_since(looked) < EVERY) {
            return None;
        }
        self.looked = Some(now);
        let counts = FAMILIES.map(|(path, ..)| fs::read_to_string(path).ok().and_then(|text| table_fulls(&text)));
        self.judge(now, counts)
    }

    fn judge(&mut self, now: Instant, counts: [Option<u64>; 2]) -> Option<Vec<String>> {
        let mut found = Vec::new();
        for ((table, count), (_, key, family)) in self.tables.iter_mut().zip(counts).zip(FAMILIES) {
            if table.count.zip(count).is_some_and(|(before, now)| now > before) {
                table.full = Some(now);
            }
            table.count = count;
            if table.full.is_some_and(|full| now.duration_since(full) < MEMORY) {
                found.push(full(key, family));
            }
        }
        if found == self.told {
            return None;
        }
        found.iter().filter(|text| !self.told.contains(text)).for_each(|text| tracing::warn!("{text}"));
        self.told.clone_from(&found);
        Some(found)
    }
}

fn full(key: &str, family: &str) -> String {
    let [soft, hard] = ROOM;
    let setting = format!("net.{key}.neigh.default.gc_thresh");
    format!(
        "the kernel's table of {family} neighbours was full within the last minute: containers are not reached for seconds at a time; \
         all network namespaces of this machine share it; `sysctl -w {setting}2={soft} {setting}3={hard}` makes room"
    )
}

/// How often the table was full: a line of names, then one of hexadecimal numbers for each processor.
fn table_fulls(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let column = lines.next()?.split_whitespace().position(|name| name == "table_fulls")?;
    lines.map(|line| u64::from_str_radix(line.split_whitespace().nth(column)?, 16).ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counters_are_read() {
        for (path, ..) in FAMILIES {
            assert!(table_fulls(&fs::read_to_string(path).unwrap()).is_some(), "{path}");
        }
        assert_eq!(table_fulls("entries  table_fulls\n00000003 00000241\n00000003 00000010\n"), Some(0x251));
        assert_eq!(table_fulls("entries\n00000003\n"), None, "a kernel that does not count");
        assert_eq!(table_fulls("table_fulls\nnothing\n"), None);
    }

    #[test]
    fn a_full_table_is_told_until_it_was_not_full_for_a_minute() {
        let mut neighbours = Neighbours::default();
        let start = Instant::now();
        let mut at = |seconds, counts| neighbours.judge(start + Duration::from_secs(seconds), counts);
        assert_eq!(at(0, [Some(7), None]), None, "what was before we came");
        assert_eq!(at(5, [Some(7), None]), None);
        let told = at(10, [Some(8), None]).unwrap();
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("IPv4") && told[0].contains("net.ipv4.neigh.default.gc_thresh3=8192"), "{told:?}");
        assert_eq!(at(60, [Some(9), None]), None, "still the same");
        assert_eq!(at(119, [Some(9), None]), None);
        assert_eq!(at(120, [Some(9), None]), Some(Vec::new()));
    }
}
