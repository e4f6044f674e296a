//! The figures of all rounds, their medians, and what a tunnel reaches of the ceiling.
//!
//! Machines drift, virtual ones by a factor of two within an hour. So figures are compared within a round, and of these ratios
//! the median is taken: medians of different ways may come from different times.

use std::collections::BTreeMap;

use serde::Serialize;

use super::machine::Machine;
use super::matrix::{Figure, Way};

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `underpass.bench/1`.
    pub schema: &'static str,
    /// Everything was measured.
    pub ok: bool,
    /// Why not.
    pub failure: Option<String>,
    /// Ours.
    pub version: &'static str,
    /// Where.
    pub machine: Machine,
    /// How.
    pub settings: Settings,
    /// How long all of it took.
    pub elapsed_seconds: f64,
    /// Row by row.
    pub figures: Vec<Row>,
    /// TCP between containers against TCP between their hosts, per round; by way.
    pub container_to_host: BTreeMap<&'static str, Values>,
}

impl Report {
    /// Nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.figures.iter().all(|row| row.ways.is_empty())
    }
}

/// What was asked for.
#[derive(Debug, Serialize)]
pub struct Settings {
    /// How often everything was measured.
    pub rounds: u32,
    /// How long each figure was measured.
    pub seconds: f64,
    /// The agents' suite.
    pub suite: &'static str,
    /// The agents' queues; none: one per core.
    pub queues: Option<u16>,
    /// The tunnels' MTU, in octets.
    pub inner_mtu: u16,
    /// Columns, in order.
    pub ways: Vec<Way>,
}

impl Settings {
    /// How much was measured, in words.
    pub fn effort(&self) -> String {
        let Self { rounds, seconds, .. } = self;
        if *rounds == 1 { format!("one round of {seconds} s") } else { format!("medians of {rounds} rounds of {seconds} s") }
    }
}

/// One figure.
#[derive(Debug, Serialize)]
pub struct Row {
    /// As arguments call it.
    pub name: &'static str,
    /// What it is.
    #[serde(skip)]
    pub figure: Figure,
    /// As it is shown.
    pub label: &'static str,
    /// Of its values.
    pub unit: &'static str,
    /// `higher` or `lower`.
    pub better: &'static str,
    /// By way.
    pub ways: BTreeMap<&'static str, Values>,
    /// Against the ceiling in the same round; by way.
    pub to_ceiling: BTreeMap<&'static str, Values>,
}

/// One number per round; none where it was not measured.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Values {
    /// In order.
    pub rounds: Vec<Option<f64>>,
    /// Of those that are there.
    pub median: Option<f64>,
    /// The smallest.
    pub min: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
}

impl Values {
    /// With what they tell together.
    pub fn new(rounds: Vec<Option<f64>>) -> Self {
        let mut sorted: Vec<f64> = rounds.iter().copied().flatten().collect();
        sorted.sort_by(f64::total_cmp);
        let (median, min, max) = (median(&sorted), sorted.first().copied(), sorted.last().copied());
        Self { rounds, median, min, max }
    }

    /// Round by round, these over those. None where a number is missing or those are zero.
    fn over(&self, those: &Self) -> Self {
        let ratio = |(a, b): (&Option<f64>, &Option<f64>)| Some((*a)? / (*b).filter(|&b| b > 0.0)?);
        Self::new(self.rounds.iter().zip(&those.rounds).map(ratio).collect())
    }
}

/// Of sorted values: the one in the middle, or the mean of the two there.
fn median(sorted: &[f64]) -> Option<f64> {
    let half = sorted.len() / 2;
    let upper = *sorted.get(half)?;
    Some(if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[half - 1], upper) } else { upper })
}

/// Every value that was measured.
#[derive(Debug, Default)]
pub struct Results {
    rounds: usize,
    values: BTreeMap<(Figure, Way), Vec<Option<f64>>>,
}

impl Results {
    /// Notes a value of a round, counted from 0.
    pub fn note(&mut self, round: usize, figure: Figure, way: Way, value: f64) {
        self.rounds = self.rounds.max(round + 1);
        let values = self.values.entry((figure, way)).or_default();
        values.resize(values.len().max(round + 1), None);
        values[round] = Some(value);
    }

    fn of(&self, figure: Figure, way: Way) -> Option<Values> {
        let mut rounds = self.values.get(&(figure, way))?.clone();
        rounds.resize(self.rounds, None);
        Some(Values::new(rounds))
    }

    /// The rows of these figures.
    pub fn rows(&self, figures: &[Figure], ways: &[Way]) -> Vec<Row> {
        figures.iter().map(|&figure| self.row(figure, ways)).collect()
    }

    fn row(&self, figure: Figure, ways: &[Way]) -> Row {
        let ceiling = self.of(figure, Way::Ceiling);
        let mut row = Row {
            name: figure.name(),
            figure,
            label: figure.label(),
            unit: figure.unit(),
            better: if figure.is_rate() { "higher" } else { "lower" },
            ways: BTreeMap::new(),
            to_ceiling: BTreeMap::new(),
        };
        for &way in ways {
            let Some(values) = self.of(figure, way) else { continue };
            if let Some(ceiling) = ceiling.as_ref().filter(|_| way != Way::Ceiling) {
                row.to_ceiling.insert(way.name(), values.over(ceiling));
            }
            row.ways.insert(way.name(), values);
        }
        row
    }

    /// How much of what its host reaches a container reaches.
    pub fn container_to_host(&self, ways: &[Way]) -> BTreeMap<&'static str, Values> {
        let ratio = |&way: &Way| {
            let (inside, outside) = (self.of(Figure::Container, way)?, self.of(Figure::Tcp1, way)?);
            Some((way.name(), inside.over(&outside)))
        };
        ways.iter().filter_map(ratio).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        for (values, expected) in
            [(&[][..], None), (&[3.0], Some(3.0)), (&[1.0, 4.0], Some(2.5)), (&[1.0, 2.0, 9.0], Some(2.0))]
        {
            assert_eq!(median(values), expected, "{values:?}");
        }
        let values = Values::new(vec![Some(9.0), None, Some(1.0), Some(2.0)]);
        assert_eq!((values.median, values.min, values.max), (Some(2.0), Some(1.0), Some(9.0)));
        assert_eq!(Values::new(vec![None]).median, None);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut results = Results::default();
        // A machine that is half as fast in the second round: the ratio does not see it.
        for (round, (ours, ceiling)) in [(8.0, 10.0), (4.0, 5.0), (9.0, 10.0)].into_iter().enumerate() {
            results.note(round, Figure::Tcp1, Way::Underpass, ours);
            results.note(round, Figure::Tcp1, Way::Ceiling, ceiling);
        }
        results.note(2, Figure::Container, Way::Underpass, 4.5);
        let row = results.row(Figure::Tcp1, &Way::ALL);
        assert_eq!(row.ways.keys().copied().collect::<Vec<_>>(), ["ceiling", "underpass"]);
        let ratio = &row.to_ceiling["underpass"];
        assert_eq!(ratio.rounds, [Some(0.8), Some(0.8), Some(0.9)]);
        assert_eq!((ratio.median, row.to_ceiling.len()), (Some(0.8), 1), "the ceiling is not compared with itself");
        let contained = &results.container_to_host(&Way::ALL)["underpass"];
        assert_eq!(contained.rounds, [None, None, Some(0.5)]);
    }

    #[test]
    fn nothing_is_divided_by_zero_or_by_nothing() {
        let mut results = Results::default();
        results.note(0, Figure::Udp64, Way::Plain, 5.0);
        assert!(results.row(Figure::Udp64, &Way::ALL).to_ceiling.is_empty());
        results.note(0, Figure::Udp64, Way::Ceiling, 0.0);
        assert_eq!(results.row(Figure::Udp64, &Way::ALL).to_ceiling["plain"].median, None);
        assert_eq!(results.row(Figure::Cpu, &Way::ALL).ways.len(), 0);
    }
}
