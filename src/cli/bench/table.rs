//! The report for people: at most 100 columns.

use super::matrix::{Figure, Way};
use super::report::{Report, Row, Values};

/// Columns of a figure's label, its unit, a value, and a ratio with its spread.
const LABEL: usize = 22;
const UNIT: usize = 8;
const VALUE: usize = 11;
const RATIO: usize = 20;

/// All of it, with a line of what to compare at the end.
pub fn render(report: &Report) -> String {
    let settings = &report.settings;
    let mut text = format!("{}, {} cores, {}\n", report.machine.processor, report.machine.cores, report.machine.kernel);
    let queues = settings.queues.map_or_else(|| "one per core".to_owned(), |queues| queues.to_string());
    text += &format!(
        "underpass {}: {}, queues: {queues}; inside MTU {}; {}\n\n",
        report.version,
        settings.suite,
        settings.inner_mtu,
        settings.effort()
    );
    let ways = &settings.ways;
    let compared = ways.contains(&Way::Ceiling) && ways.contains(&Way::Underpass);
    text += &format!("{:LABEL$}{:>UNIT$}", "", "");
    ways.iter().for_each(|way| text += &format!("{:>VALUE$}", way.name()));
    text += if compared { "   underpass/ceiling" } else { "" };
    text += "\n";
    for row in &report.figures {
        text += line(row, ways, compared).trim_end();
        text += "\n";
    }
    text += "\n";
    let reached = |way: &Way| Some(format!("{} {}", way.name(), spread(report.container_to_host.get(way.name())?)));
    let reached: Vec<_> = ways.iter().filter_map(reached).collect();
    if !reached.is_empty() {
        text += &format!("Containers reach of what their hosts reach, TCP, 1 stream:\n  {}\n\n", reached.join(", "));
    }
    for way in ways {
        text += &format!("{:>9}  {}\n", way.name(), way.story());
    }
    text += "Compare columns of one run: machines drift, so only ratios within a round mean anything. All of it shares\n\
             this machine's cores: both hosts, what they send and what they receive.\n";
    text
}

fn line(row: &Row, ways: &[Way], compared: bool) -> String {
    let mut text = pad(row.label, LABEL) + &right(row.unit, UNIT);
    for way in ways {
        let median = row.ways.get(way.name()).and_then(|values| values.median);
        text += &right(&median.map_or_else(|| "-".to_owned(), |value| number(row.figure, value)), VALUE);
    }
    if compared {
        text += &right(&row.to_ceiling.get(Way::Underpass.name()).map_or_else(String::new, spread), RATIO);
    }
    text
}

/// By characters: a unit has a µ.
fn pad(text: &str, width: usize) -> String {
    format!("{text:<width$}")
}

fn right(text: &str, width: usize) -> String {
    format!("{text:>width$}")
}

/// A value with as many digits as mean something.
pub fn number(figure: Figure, value: f64) -> String {
    match figure {
        Figure::Cpu => format!("{value:.2}"),
        _ if value < 10.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A ratio's median, and from where to where its rounds went.
fn spread(values: &Values) -> String {
    match (values.median, values.min, values.max) {
        (Some(median), Some(min), Some(max)) if values.rounds.len() > 1 => format!("{median:.2} ({min:.2}-{max:.2})"),
        (Some(median), ..) => format!("{median:.2}"),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::cli::bench::machine::Machine;
    use crate::cli::bench::report::{Results, Settings};

    /// A report with a value for everything, from large to small.
    pub fn full() -> Report {
        let mut results = Results::default();
        for (place, figure) in Figure::ALL.into_iter().enumerate() {
            for (column, way) in Way::ALL.into_iter().enumerate().filter(|&(_, way)| figure.applies(way)) {
                for round in 0..3 {
                    let value =
                        24_573.0 / (place as f64 + 1.0).powi(3) / (column as f64 + 1.0) * (1.0 + f64::from(round) / 10.0);
                    results.note(round as usize, figure, way, value);
                }
            }
        }
        Report {
            schema: "underpass.bench/1",
            ok: true,
            failure: None,
            version: "0.1.0",
            machine: Machine { processor: "Some <CPU> & more".to_owned(), cores: 2, kernel: "Linux 6.18".to_owned() },
            settings: Settings {
                rounds: 3,
                seconds: 3.0,
                suite: "aes256gcm16",
                queues: None,
                inner_mtu: 1400,
                ways: Way::ALL.into(),
            },
            elapsed_seconds: 1.0,
            figures: results.rows(&Figure::ALL, &Way::ALL),
            container_to_host: results.container_to_host(&Way::ALL),
        }
    }

    #[test]
    fn every_row_fits_and_stands_under_its_column() {
        let text = render(&full());
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
        let table: Vec<_> = text.lines().skip(3).take(15).collect();
        assert!(table.iter().all(|line| line.chars().count() <= 100), "{text}");
        assert_eq!(
            table[..2],
            [
                "                                      raw    ceiling  underpass      plain   underpass/ceiling",
                "TCP, 1 stream           Mbit/s      27030      13515       9010       6758    0.67 (0.67-0.67)",
            ]
        );
        for (line, figure) in table[1..].iter().zip(Figure::ALL) {
            assert!(line.starts_with(figure.label()) && line.contains(figure.unit()), "{line}");
        }
        assert_eq!(
            table[13],
            "CPU, both hosts           s/GB          -       6.15       4.10       3.08    0.67 (0.67-0.67)"
        );
        assert!(text.contains(":\n  raw 0.00 (0.00-0.00), ceiling 0.00"), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let mut report = full();
        report.figures = Results::default().rows(&[Figure::Tcp1], &Way::ALL);
        report.container_to_host.clear();
        let text = render(&report);
        assert!(text.contains("TCP, 1 stream           Mbit/s          -          -          -          -\n"), "{text}");
        assert!(!text.contains("Containers reach"));
    }

    #[test]
    fn without_a_ceiling_there_is_nothing_to_compare_with() {
        let mut report = full();
        report.settings.ways = vec![Way::Underpass];
        let text = render(&report);
        assert!(!text.contains("underpass/ceiling") && !text.contains("0.67 ("), "{text}");
    }
}
