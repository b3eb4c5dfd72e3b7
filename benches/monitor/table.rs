//! Tables on stdout, in Markdown.

/// The median; NaN if there are no values.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// The largest; NaN if there are no values.
pub fn most(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(f64::NAN, f64::max)
}

/// The median, with the lowest and the highest.
pub fn spread(values: impl IntoIterator<Item = f64>, decimals: usize) -> String {
    let values: Vec<f64> = values.into_iter().collect();
    let lowest = values.iter().copied().fold(f64::NAN, f64::min);
    let [middle, lowest, highest] =
        [median(values.iter().copied()), lowest, most(values)].map(|value| number(value, decimals));
    format!("{middle} ({lowest} to {highest})")
}

/// Prints rows below their headings, in columns as wide as they need to be. The first column is a name, on the left.
pub fn print<const COLUMNS: usize>(headings: [&str; COLUMNS], rows: &[[String; COLUMNS]]) {
    let headings = headings.map(str::to_owned);
    let all = || std::iter::once(&headings).chain(rows);
    let widths: [usize; COLUMNS] =
        std::array::from_fn(|column| all().map(|row| row[column].chars().count()).max().unwrap_or_default());
    for (at, row) in all().enumerate() {
        let mut line = format!("| {:width$} |", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(widths).skip(1) {
            line.push_str(&format!(" {cell:>width$} |"));
        }
        println!("{line}");
        if at == 0 {
            let rules = widths.iter().skip(1).map(|width| format!("{:->width$}:|", "", width = width + 1));
            println!("|{:->width$}|{}", "", rules.collect::<String>(), width = widths[0] + 2);
        }
    }
    println!();
}

/// A number with this many decimals; a dash if it was not measured.
pub fn number(value: f64, decimals: usize) -> String {
    if value.is_nan() { "-".into() } else { format!("{value:.decimals$}") }
}

/// `part` of `whole`, in percent.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { f64::NAN } else { 100.0 * part as f64 / whole as f64 }
}
