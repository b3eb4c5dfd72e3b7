//! Figures for people: three digits, and a unit in a column of its own.
//!
//! ```text
//! 9.99 kB   99.9 MB    999 GB      0 B       (of 1000)
//! 9.99 KiB  ...                              (of 1024)
//! 9.99 kbit ...                              (rates only, of 1000)
//! ```

/// The unit of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Unit {
    /// kB of 1000 bytes.
    #[default]
    Bytes,
    /// kbit of 1000 bits, for rates; totals stay in bytes.
    Bits,
    /// KiB of 1024 bytes.
    Binary,
}

impl Unit {
    pub fn next(self) -> Self {
        match self {
            Self::Bytes => Self::Bits,
            Self::Bits => Self::Binary,
            Self::Binary => Self::Bytes,
        }
    }

    /// The columns of a rate.
    pub fn rate_columns(self) -> usize {
        match self {
            Self::Bytes => 7,
            Self::Bits => 9,
            Self::Binary => 8,
        }
    }

    /// The columns of a total.
    pub fn total_columns(self) -> usize {
        if self == Self::Binary { 8 } else { 7 }
    }

    /// A rate, from bytes per second.
    pub fn rate(self, bytes_per_s: f64) -> String {
        match self {
            Self::Bytes => scaled(bytes_per_s, 1000.0, ["B", "kB", "MB", "GB", "TB", "PB"]),
            Self::Bits => scaled(bytes_per_s * 8.0, 1000.0, ["bit", "kbit", "Mbit", "Gbit", "Tbit", "Pbit"]),
            Self::Binary => scaled(bytes_per_s, 1024.0, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]),
        }
    }

    /// A number of bytes.
    pub fn total(self, bytes: u64) -> String {
        if self == Self::Binary { self.rate(bytes as f64) } else { Self::Bytes.rate(bytes as f64) }
    }
}

/// Three digits, so that the decimal point moves only when the size does; units of one width, so that it stands in one column.
fn scaled(value: f64, base: f64, units: [&str; 6]) -> String {
    let mut value = value.max(0.0);
    let mut at = 0;
    // What would be rounded to 1000 takes the next unit: 1.00 kB.
    while at + 1 < units.len() && value >= 999.5 {
        value /= base;
        at += 1;
    }
    let decimals = match value {
        _ if at == 0 => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    let width = units[1].len();
    format!("{value:>4.decimals$} {:<width$}", units[at])
}

#[cfg(test)]
mod tests {
    use super::Unit;

    #[test]
    fn three_digits_and_a_unit() {
        for (bytes, text) in [
            (0.0, "   0 B "),
            (999.0, " 999 B "),
            (999.6, "1.00 kB"),
            (9_994.0, "9.99 kB"),
            (9_996.0, "10.0 kB"),
            (99_960.0, " 100 kB"),
            (66_579_088.0, "66.6 MB"),
            (1.7e12, "1.70 TB"),
        ] {
            assert_eq!(Unit::Bytes.rate(bytes), text);
            assert_eq!(text.len(), Unit::Bytes.rate_columns());
        }
        assert_eq!(Unit::Bits.rate(1.5e6), "12.0 Mbit");
        assert_eq!(Unit::Bits.total(1_500_000), "1.50 MB");
        assert_eq!(Unit::Binary.rate(1023.0), "1.00 KiB");
        assert_eq!(Unit::Binary.total(66 << 20), "66.0 MiB");
    }
}
