//! The calendar: when minutes, hours, days, weeks and months begin in the local time zone, and what a person writes for a time.
//!
//! Times are seconds since 1970 in UTC, so that each is another one whatever the clocks on the wall do: on the day on which daylight
//! saving ends, an hour that comes twice begins twice, and the day has 25 of them.

use std::time::SystemTime;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan, Zoned};

/// The years 1970 to 9998: what every calendar here can work with.
const FIRST: i64 = 0;
/// The last second of these.
pub const LAST: i64 = 253_370_764_799;

/// A unit of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// 60 seconds.
    Minute,
    /// From one full hour to the next.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From Monday to Sunday.
    Week,
    /// From its first day to its last.
    Month,
}

impl Period {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }

    /// When the period in which `at` lies began.
    pub fn start(self, at: i64, zone: &TimeZone) -> i64 {
        Cycle { period: self, first_day: 1 }.start(at, zone)
    }

    /// When the period that began at `start` is over.
    pub fn end(self, start: i64, zone: &TimeZone) -> i64 {
        match self {
            Self::Minute => start + 60,
            Self::Hour => start + 3600,
            Self::Day | Self::Week | Self::Month => {
                let date = local(start, zone).date();
                let next = match self {
                    Self::Month => date.first_of_month().checked_add(1.month()),
                    Self::Week => date.checked_add(1.week()),
                    _ => date.checked_add(1.day()),
                };
                next.map_or(LAST, |next| midnight(next, zone))
            }
        }
    }
}

/// A period that need not begin on Monday or on the first of a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cycle {
    /// Its length.
    pub period: Period,
    /// The day on which it begins: of a month, 1 to 28; of a week, 1 (Monday) to 7. Shorter periods have none.
    pub first_day: i8,
}

impl Cycle {
    /// When the cycle in which `at` lies began.
    pub fn start(self, at: i64, zone: &TimeZone) -> i64 {
        let at = at.clamp(FIRST, LAST);
        let now = local(at, zone);
        let today = now.date();
        let first = match self.period {
            Period::Minute => return at.div_euclid(60) * 60,
            Period::Hour => {
                let offset = i64::from(now.offset().seconds());
                return (at + offset).div_euclid(3600) * 3600 - offset;
            }
            Period::Day => Ok(today),
            Period::Week => {
                let since = (today.weekday().to_monday_one_offset() - self.first_day).rem_euclid(7);
                today.checked_sub(i64::from(since).days())
            }
            Period::Month => {
                let month = if today.day() < self.first_day { today.checked_sub(1.month()) } else { Ok(today) };
                month.and_then(|month| month.with().day(self.first_day).build())
            }
        };
        first.map_or(FIRST, |first| midnight(first, zone))
    }
}

/// The seconds since 1970 of a clock; clocks before that year, or too far after it, count as the nearest time that is not.
pub fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(LAST).min(LAST)
}

/// A time as the clocks on the wall show it.
pub fn local(at: i64, zone: &TimeZone) -> Zoned {
    Timestamp::from_second(at.clamp(FIRST, LAST)).unwrap_or_default().to_zoned(zone.clone())
}

/// The first moment of a day.
fn midnight(date: Date, zone: &TimeZone) -> i64 {
    date.to_zoned(zone.clone()).map_or(FIRST, |at| at.timestamp().as_second()).clamp(FIRST, LAST)
}

/// The time that a person means by `2026-11-25`, `2026-11-25 14:00`, `today`, `yesterday`, or `3 days` (ago).
///
/// # Errors
/// If it is none of these.
pub fn parse(text: &str, now: i64, zone: &TimeZone) -> Result<i64, String> {
    let text = text.trim();
    let today = local(now, zone).date();
    let date = match text {
        "now" => return Ok(now),
        "today" => Ok(today),
        "yesterday" => today.yesterday(),
        _ => text.parse(),
    };
    if !text.contains(':')
        && let Ok(date) = date
    {
        return Ok(midnight(date, zone));
    }
    if let Ok(time) = text.parse::<DateTime>()
        && let Ok(time) = time.to_zoned(zone.clone())
    {
        return Ok(time.timestamp().as_second().clamp(FIRST, LAST));
    }
    let wrong = || "not a time such as 2026-11-25, \"2026-11-25 14:00\", today, yesterday or \"3 days\"".to_owned();
    let ago = text.parse::<Span>().map_err(|_| wrong())?.abs();
    let then = local(now, zone).checked_sub(ago).map_err(|_| wrong())?;
    Ok(then.timestamp().as_second().clamp(FIRST, LAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str) -> TimeZone {
        TimeZone::posix(name).unwrap()
    }

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    fn berlin() -> TimeZone {
        zone("CET-1CEST,M3.5.0,M10.5.0/3")
    }

    #[test]
    fn periods_begin_in_local_time() {
        let now = at("2026-11-25T23:30:59Z");
        for (period, start, end) in [
            (Period::Minute, "2026-11-25T23:30:00Z", "2026-11-25T23:31:00Z"),
            (Period::Hour, "2026-11-25T23:00:00Z", "2026-11-26T00:00:00Z"),
            (Period::Day, "2026-11-25T23:00:00Z", "2026-11-26T23:00:00Z"),
            (Period::Week, "2026-11-22T23:00:00Z", "2026-11-29T23:00:00Z"),
            (Period::Month, "2026-10-31T23:00:00Z", "2026-11-30T23:00:00Z"),
        ] {
            assert_eq!(period.start(now, &berlin()), at(start), "{period:?}");
            assert_eq!(period.end(at(start), &berlin()), at(end), "{period:?}");
        }
        // India is half an hour off.
        assert_eq!(Period::Hour.start(at("2026-11-25T23:10:00Z"), &zone("IST-5:30")), at("2026-11-25T22:30:00Z"));
    }

    #[test]
    fn the_hour_that_comes_twice_begins_twice_and_its_day_has_25() {
        let [first, second] = ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"].map(at);
        let hours = [first, second].map(|at| Period::Hour.start(at, &berlin()));
        assert_eq!(hours, ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"].map(at));
        assert_eq!([first, second].map(|at| local(at, &berlin()).hour()), [2, 2]);
        let day = Period::Day.start(first, &berlin());
        assert_eq!((day, Period::Day.end(day, &berlin()) - day), (at("2026-10-24T22:00:00Z"), 25 * 3600));
    }

    #[test]
    fn a_cycle_begins_on_its_own_day() {
        let month = |now| Cycle { period: Period::Month, first_day: 15 }.start(at(now), &TimeZone::UTC);
        assert_eq!(month("2026-11-14T23:59:59Z"), at("2026-10-15T00:00:00Z"));
        assert_eq!(month("2026-11-15T00:00:00Z"), at("2026-11-15T00:00:00Z"));
        assert_eq!(month("2027-01-01T00:00:00Z"), at("2026-12-15T00:00:00Z"));
        let week = |now| Cycle { period: Period::Week, first_day: 7 }.start(at(now), &TimeZone::UTC);
        // A Wednesday, and a Sunday.
        assert_eq!(week("2026-11-25T12:00:00Z"), at("2026-11-22T00:00:00Z"));
        assert_eq!(week("2026-11-22T12:00:00Z"), at("2026-11-22T00:00:00Z"));
    }

    #[test]
    fn no_clock_is_beyond_the_calendar() {
        for clock in [i64::MIN, -1, 0, LAST, i64::MAX] {
            for period in [Period::Minute, Period::Hour, Period::Day, Period::Week, Period::Month] {
                for zone in [TimeZone::UTC, berlin(), zone("EST5")] {
                    let start = period.start(clock, &zone);
                    assert!((FIRST - 86400..=LAST).contains(&start), "{clock} {period:?} {start}");
                    period.end(start, &zone);
                }
            }
        }
    }

    #[test]
    fn a_time_is_what_people_write() {
        let now = at("2026-11-26T06:00:00Z");
        for (text, expected) in [
            ("2026-11-25", "2026-11-24T23:00:00Z"),
            ("2026-11-25 14:00", "2026-11-25T13:00:00Z"),
            ("2026-11-25T14:00", "2026-11-25T13:00:00Z"),
            ("today", "2026-11-25T23:00:00Z"),
            ("yesterday", "2026-11-24T23:00:00Z"),
            ("now", "2026-11-26T06:00:00Z"),
            ("3 days", "2026-11-23T06:00:00Z"),
            ("3 days ago", "2026-11-23T06:00:00Z"),
            ("24h", "2026-11-25T06:00:00Z"),
            ("1 month", "2026-10-26T06:00:00Z"),
        ] {
            assert_eq!(parse(text, now, &berlin()), Ok(at(expected)), "{text}");
        }
        for text in ["", "soon", "25.11.2026", "2026-13-01"] {
            assert!(parse(text, now, &berlin()).is_err(), "{text}");
        }
    }
}
