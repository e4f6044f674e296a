//! The report as a picture: one panel per figure, one bar per way, each panel with a scale of its own. Plain SVG, light, and
//! readable without colour: every bar bears its name and its value.

use super::matrix::Way;
use super::report::{Report, Row};
use super::table::number;

/// Measures of the picture, in its own units (pixels at full size).
const WIDTH: usize = 980;
const MARGIN: usize = 30;
const HEAD: usize = 84;
const FOOT: usize = 34;
const COLUMNS: usize = 2;
/// A panel's title, each of its bars, and what is left free below it.
const TITLE: usize = 24;
const BAR: usize = 19;
const GAP: usize = 20;
/// Names stand left of the bars, values right of them.
const NAME: usize = 78;
const VALUE: usize = 70;

/// The whole picture.
pub fn svg(report: &Report) -> String {
    let ways = &report.settings.ways;
    let panel = TITLE + ways.len() * BAR + GAP;
    let per_column = report.figures.len().div_ceil(COLUMNS).max(1);
    let height = HEAD + per_column * panel + FOOT;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let settings = &report.settings;
    text += &label(MARGIN, 38, "font-size=\"20\" fill=\"#222222\"", "underpass bench");
    let facts = format!(
        "{}, {} cores, {}; {}; {}",
        report.machine.processor,
        report.machine.cores,
        report.machine.kernel,
        settings.suite,
        settings.effort()
    );
    text += &label(MARGIN, 60, GREY, &facts);
    let column_width = (WIDTH - MARGIN) / COLUMNS;
    for (number, row) in report.figures.iter().enumerate() {
        let (column, place) = (number / per_column, number % per_column);
        text += &one_panel(row, ways, MARGIN + column * column_width, HEAD + place * panel, column_width - MARGIN);
    }
    let hint = "Each panel has its own scale. Both hosts and what they send and receive share this machine.";
    text += &label(MARGIN, height - 14, GREY, hint);
    text + "</svg>\n"
}

const GREY: &str = "fill=\"#666666\"";

const fn colour(way: Way) -> &'static str {
    match way {
        Way::Raw => "#d5d8dc",
        Way::Ceiling => "#a9cce3",
        Way::Underpass => "#2471a3",
        Way::Plain => "#f0c9a0",
    }
}

fn one_panel(row: &Row, ways: &[Way], left: usize, top: usize, width: usize) -> String {
    let direction = if row.better == "lower" { ", less is better" } else { "" };
    let mut text =
        label(left, top + 14, "font-weight=\"bold\" fill=\"#222222\"", &format!("{}, {}{direction}", row.label, row.unit));
    let median = |way: Way| row.ways.get(way.name()).and_then(|values| values.median);
    let most = ways.iter().filter_map(|&way| median(way)).fold(0.0, f64::max);
    for (place, &way) in ways.iter().enumerate() {
        let base = top + TITLE + place * BAR;
        text += &label(left + NAME - 8, base + 12, "fill=\"#444444\" text-anchor=\"end\"", way.name());
        let Some(value) = median(way) else {
            text += &label(left + NAME, base + 12, GREY, "-");
            continue;
        };
        let part = if most > 0.0 { value / most } else { 0.0 };
        // A bar that cannot be seen would look like one that is missing.
        let length = ((width - NAME - VALUE) as f64 * part).max(1.0);
        text += &format!(
            "<rect x=\"{}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\" fill=\"{}\"/>\n",
            left + NAME,
            base + 1,
            BAR - 5,
            colour(way)
        );
        let end = left + NAME + length as usize + 6;
        text += &label(end, base + 12, "fill=\"#222222\"", &number(row.figure, value));
    }
    text
}

fn label(x: usize, y: usize, style: &str, text: &str) -> String {
    format!("<text x=\"{x}\" y=\"{y}\" {style}>{}</text>\n", escape(text))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::matrix::Figure;
    use crate::cli::bench::report::Results;
    use crate::cli::bench::table::tests::full;

    /// Reads the picture as XML: every tag is closed in order, every attribute quoted, no stray mark in a text.
    /// Returns the texts.
    fn texts(svg: &str) -> Vec<String> {
        let (mut open, mut found, mut rest) = (Vec::new(), Vec::new(), svg);
        while let Some(start) = rest.find('<') {
            let text = &rest[..start];
            assert!(!text.contains('>'), "{text}");
            for entity in text.split('&').skip(1) {
                assert!(["amp;", "lt;", "gt;"].iter().any(|name| entity.starts_with(name)), "{text}");
            }
            if open.last() == Some(&"text") {
                found.push(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"));
            }
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
                continue;
            }
            let name = tag.split_whitespace().next().unwrap();
            assert_eq!(tag.matches('"').count(), 2 * tag.matches('=').count(), "{tag}");
            assert!(!tag.contains('<'));
            if !tag.ends_with('/') {
                open.push(name);
            }
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
        found
    }

    #[test]
    fn it_is_well_formed_and_holds_every_figure_of_every_way() {
        let report = full();
        let texts = texts(&svg(&report));
        let count = |wanted: &str| texts.iter().filter(|text| text.starts_with(wanted)).count();
        for figure in Figure::ALL {
            assert_eq!(count(&format!("{}, {}", figure.label(), figure.unit())), 1, "{figure:?}");
        }
        for way in Way::ALL {
            assert_eq!(texts.iter().filter(|text| *text == way.name()).count(), Figure::ALL.len());
        }
        assert!(texts.iter().any(|text| text.starts_with("Some <CPU> & more, 2 cores")));
        assert!(texts.contains(&"27030".to_owned()), "{texts:?}");
        assert_eq!(texts.iter().filter(|text| text.ends_with("less is better")).count(), 4);
    }

    #[test]
    fn bars_and_values_stay_inside() {
        let svg = svg(&full());
        let number = |line: &str, name: &str| -> f64 {
            let rest = &line[line.find(name).unwrap() + name.len()..];
            rest[..rest.find('"').unwrap()].parse().unwrap()
        };
        let bars: Vec<_> = svg.lines().filter(|line| line.starts_with("<rect x=")).collect();
        assert_eq!(bars.len(), 14 * 4 - 2, "the bare wire has neither CPU nor memory");
        for bar in bars {
            assert!(number(bar, "x=\"") + number(bar, " width=\"") + VALUE as f64 <= WIDTH as f64, "{bar}");
        }
    }

    #[test]
    fn nothing_measured_is_a_picture_too() {
        let mut report = full();
        report.figures = Results::default().rows(&[Figure::Tcp1], &Way::ALL);
        assert_eq!(texts(&svg(&report)).iter().filter(|text| *text == "-").count(), 4);
    }
}
