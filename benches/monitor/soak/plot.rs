//! The samples as a picture.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::NAMES;
use super::sample::{MEASURES, Sample};

/// The measures that are drawn, each in a panel.
const DRAWN: [usize; 6] = [0, 2, 3, 4, 5, 6];
const COLOURS: [&str; 2] = ["#1f77b4", "#d9580b"];
const WIDTH: f64 = 900.0;
const PANEL: f64 = 150.0;
/// Room around the lines of a panel.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 26.0;

/// Draws one panel for each measure, with a line for each program.
pub fn write(file: &Path, samples: &[Vec<Sample>; 2]) -> Result<()> {
    let height = PANEL * DRAWN.len() as f64;
    let minutes = samples.iter().flatten().map(|sample| sample.at.as_secs_f64() / 60.0).fold(0.0, f64::max);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (panel, &measure) in DRAWN.iter().enumerate() {
        draw(&mut svg, PANEL * panel as f64, measure, samples, minutes);
    }
    svg.push_str("</svg>\n");
    fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))
}

fn draw(svg: &mut String, top: f64, measure: usize, samples: &[Vec<Sample>; 2], minutes: f64) {
    let highest = round_up(samples.iter().flatten().map(|sample| sample.values[measure]).fold(0.0, f64::max));
    let x = |at: f64| LEFT + (WIDTH - LEFT - RIGHT) * at / minutes;
    let y = |value: f64| top + PANEL - BOTTOM - (PANEL - TOP - BOTTOM) * value / highest;
    let _ =
        writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>", top + 20.0, MEASURES[measure].name);
    for (index, (name, colour)) in NAMES.iter().zip(COLOURS).enumerate() {
        let at = WIDTH - RIGHT - 220.0 + 110.0 * index as f64;
        let _ = writeln!(svg, "<text x=\"{at}\" y=\"{}\" fill=\"{colour}\">{name}</text>", top + 20.0);
    }
    for part in 0..=2 {
        let value = highest * f64::from(part) / 2.0;
        let (end, at) = (WIDTH - RIGHT, y(value));
        let _ = writeln!(svg, "<path d=\"M{LEFT} {at:.1}H{end}\" stroke=\"#ddd\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>", LEFT - 6.0, at + 4.0);
    }
    let bottom = top + PANEL - 8.0;
    for part in 0..=4 {
        let at = minutes * f64::from(part) / 4.0;
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{bottom}\" text-anchor=\"middle\">{at:.1} min</text>", x(at));
    }
    for (samples, colour) in samples.iter().zip(COLOURS) {
        let points = samples.iter().map(|sample| (x(sample.at.as_secs_f64() / 60.0), y(sample.values[measure])));
        let line: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>", line.join(" "));
    }
}

/// The next number of the form 1, 2, 4 or 6 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1.0).log10().floor());
    [1.0, 2.0, 4.0, 6.0, 10.0].map(|factor| factor * power).into_iter().find(|&round| round >= value).unwrap_or(value)
}
