//! What the server answers: the page, the figures as JSON, the metrics, and whether ticks go on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::geteuid;
use serde_json::json;

use super::Message;
use super::metrics::{Metrics, MetricsSettings};
use super::past::Past;
use super::recent::{Recent, Series};
use super::request::{Request, Status};
use crate::output::json::{self, Named, Records};
use crate::output::{Frame, host};
use crate::traffic::interest::Interest;
use crate::traffic::rates::Row;
use crate::workload::names::Names;

/// The page and its parts.
const PAGE: &[(&str, &str, &str)] = &[
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
    ("/data.js", SCRIPT, include_str!("page/data.js")),
    ("/chart.js", SCRIPT, include_str!("page/chart.js")),
    ("/table.js", SCRIPT, include_str!("page/table.js")),
    ("/past.js", SCRIPT, include_str!("page/past.js")),
    ("/page.js", SCRIPT, include_str!("page/page.js")),
];

/// The ticks for which rows have details after a request for them.
const INTEREST: u32 = 15;
/// Ticks at least this far apart always have all rows: that costs little then, and a client would wait long for the next.
pub const RARE: Duration = Duration::from_secs(5);
/// The most notifications and messages that the page shows.
const MOST_EVENTS: usize = 20;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
pub(super) const JSON: &str = "application/json";

/// A response without its headers.
#[derive(Debug, Clone)]
pub struct Response {
    /// Its status.
    pub status: Status,
    /// The media type of its body.
    pub content_type: &'static str,
    /// Its body.
    pub body: Arc<[u8]>,
}

impl Response {
    /// A status alone.
    pub fn of(status: Status) -> Self {
        Self::new(status, TEXT, format!("{}\n", status.reason()))
    }

    /// One with a body.
    pub(super) fn new(status: Status, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, content_type, body: Arc::from(body.into()) }
    }
}

/// Which rows an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Those that have moved since the last tick.
    Moved,
    /// All.
    All,
    /// All, and the history.
    History,
}

/// The latest figures, and all that is remembered of earlier ones.
pub struct Site {
    named: Named,
    host: String,
    names: Names,
    started: SystemTime,
    interest: Arc<Interest>,
    /// The number of ticks so far.
    ticks: u64,
    last_tick: Option<Instant>,
    interval: Duration,
    /// The last frame, whether it has all rows, and its JSON for each [`Scope`], once that was asked for.
    frame: Option<Frame>,
    is_whole: bool,
    bodies: [Option<Arc<[u8]>>; 3],
    recent: Recent,
    past: Option<Past>,
    metrics: Metrics,
    /// The latest notifications and messages, as records.
    notifications: VecDeque<Vec<u8>>,
    notes: VecDeque<Vec<u8>>,
}

impl Site {
    /// A site without any figures yet.
    pub fn new(named: Named, metrics: MetricsSettings, interest: Arc<Interest>, past: Option<Past>) -> Self {
        let started = SystemTime::now();
        Self {
            named,
            host: host(),
            names: Names::read_by_another_thread(),
            started,
            interest,
            ticks: 0,
            last_tick: None,
            interval: Duration::from_secs(1),
            frame: None,
            is_whole: false,
            bodies: Default::default(),
            recent: Recent::default(),
            past,
            metrics: Metrics::new(metrics, started),
            notifications: VecDeque::new(),
            notes: VecDeque::new(),
        }
    }

    /// The time from one tick to the next.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Takes in what the loop has sent.
    pub fn take(&mut self, message: Message) {
        let (frame, is_whole) = match message {
            Message::Whole(frame) => (frame, true),
            Message::Moved(frame) => (frame, false),
            Message::Events(frame) => {
                self.metrics.notifications(&frame.notifications);
                return self.remember(&frame);
            }
        };
        self.names.refresh();
        self.ticks += 1;
        self.last_tick = Some(frame.at.monotonic);
        self.interval = frame.interval.unwrap_or(self.interval);
        self.recent.tick(frame.at.monotonic, &frame.rows);
        self.metrics.tick(&frame, &mut self.names);
        self.remember(&frame);
        self.frame = Some(frame);
        self.is_whole = is_whole;
        self.bodies = Default::default();
    }

    /// Keeps the latest notifications and messages.
    fn remember(&mut self, frame: &Frame) {
        let text = Records { named: self.named, host: &self.host, names: &mut self.names }.of_events(frame);
        for (at, record) in split(&text).enumerate() {
            let is_notification = at < frame.notifications.len() + frame.quotas.len();
            let kept = if is_notification { &mut self.notifications } else { &mut self.notes };
            kept.push_back(record);
            kept.drain(..kept.len().saturating_sub(MOST_EVENTS));
        }
    }

    /// The response to a request; `None` if it has to wait for a tick.
    pub fn answer(&mut self, request: &Request, now: Instant) -> Option<Response> {
        if let Some((_, content_type, text)) = PAGE.iter().find(|(path, ..)| *path == request.path) {
            return Some(Response::new(Status::Ok, content_type, *text));
        }
        match &*request.path {
            "/data.json" => self.data(request),
            "/history.json" => match (&mut self.past, request.range) {
                (Some(past), Some(range)) => past.answer(range, now),
                (Some(_), None) => Some(Response::of(Status::BadRequest)),
                (None, _) => Some(Response::of(Status::NotFound)),
            },
            "/metrics" => {
                let content_type = if request.takes_openmetrics {
                    "application/openmetrics-text; version=1.0.0; charset=utf-8"
                } else {
                    "text/plain; version=0.0.4; charset=utf-8"
                };
                Some(Response::new(Status::Ok, content_type, self.metrics.text(request.takes_openmetrics)))
            }
            "/healthz" => Some(self.health(now)),
            _ => Some(Response::of(Status::NotFound)),
        }
    }

    fn health(&self, now: Instant) -> Response {
        let Some(last) = self.last_tick else {
            return Response::new(Status::Unavailable, TEXT, "no tick yet\n");
        };
        let age = now.saturating_duration_since(last);
        let status = if age > 3 * self.interval.max(RARE) { Status::Unavailable } else { Status::Ok };
        Response::new(status, TEXT, format!("the last tick was {} s ago\n", age.as_secs()))
    }

    fn data(&mut self, request: &Request) -> Option<Response> {
        self.interest.follow(INTEREST);
        if request.after == Some(self.ticks) {
            if !request.moved_only {
                self.interest.want_all();
            }
            return None;
        }
        // What has moved since the tick before the last is not known.
        let has_the_last_but_one = request.after.is_some_and(|after| after + 1 == self.ticks);
        let scope = match request {
            Request { with_history: true, .. } => Scope::History,
            Request { moved_only: true, .. } if has_the_last_but_one => Scope::Moved,
            _ => Scope::All,
        };
        if scope != Scope::Moved && !self.is_whole {
            self.interest.want_all();
            return None;
        }
        let frame = self.frame.take()?;
        let body = match self.bodies[scope as usize].take() {
            Some(body) => body,
            None => Arc::from(self.body(&frame, scope)),
        };
        self.frame = Some(frame);
        self.bodies[scope as usize] = Some(Arc::clone(&body));
        Some(Response { status: Status::Ok, content_type: JSON, body })
    }

    /// The records of `--json` as one object, with what the page needs besides.
    fn body(&mut self, frame: &Frame, scope: Scope) -> Vec<u8> {
        let program = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "host": self.host,
            "started": json::timestamp(self.started),
            "ticks": self.ticks,
            "moved_only": scope == Scope::Moved,
            // Without root, there is more to see for root.
            "is_root": geteuid().is_root(),
            // Whether there is /history.json.
            "has_history": self.past.is_some(),
            // Whether the rows are processes, which the page can group.
            "rows": if self.named == Named::Group("command") { "process" } else { "application" },
        });
        let mut body = format!("{{\"program\":{program},\"records\":[").into_bytes();
        let text = match scope {
            Scope::Moved if self.is_whole => self.text(&Frame {
                rows: frame.rows.iter().filter(|row| row.has_moved()).cloned().collect(),
                unowned: frame.unowned.clone(),
                interval: frame.interval,
                ..frame.without_figures()
            }),
            Scope::Moved | Scope::All | Scope::History => self.text(frame),
        };
        // A line each, the last of which is the tick. In a record, a line's end is an escape.
        let text = text.strip_suffix(b"\n").unwrap_or(&text);
        let tick = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let records = &text[..tick.saturating_sub(1)];
        body.extend(records.iter().map(|&byte| if byte == b'\n' { b',' } else { byte }));
        body.extend(b"],\"tick\":");
        body.extend(&text[tick..]);
        for (name, events) in [("notifications", &self.notifications), ("notes", &self.notes)] {
            body.extend(format!(",\"{name}\":[").bytes());
            body.extend(events.iter().map(Vec::as_slice).collect::<Vec<_>>().join(&b','));
            body.push(b']');
        }
        if scope == Scope::History {
            body.extend(b",\"history\":[");
            body.extend(self.series(frame).join(&b','));
            body.extend(b"],\"other_history\":{");
            body.extend(bytes(self.recent.others()).bytes());
            body.push(b'}');
        }
        body.push(b'}');
        body
    }

    /// The history: for each subject its record, with the bytes of each second.
    fn series(&mut self, frame: &Frame) -> Vec<Vec<u8>> {
        let subjects: Vec<_> =
            self.recent.subjects().map(|(subject, series)| (subject.clone(), bytes(series))).collect();
        let row = |(subject, _): &(Arc<_>, _)| Row {
            subject: Arc::clone(subject),
            // A record needs some.
            bytes_in: 1,
            bytes_out: 0,
            moved_in: 0,
            moved_out: 0,
            detail: None,
        };
        let rows = Frame { rows: subjects.iter().map(row).collect(), ..Frame::at(frame.at) };
        let mut series: Vec<_> = split(&self.text(&rows)).collect();
        // The tick.
        series.pop();
        for (line, (_, bytes)) in series.iter_mut().zip(&subjects) {
            line.pop();
            line.extend(format!(",{bytes}}}").bytes());
        }
        series
    }

    /// The records of a frame, a line each; the last is the tick.
    fn text(&mut self, frame: &Frame) -> Vec<u8> {
        Records { named: self.named, host: &self.host, names: &mut self.names }.of_frame(frame)
    }
}

/// The lines of a text.
fn split(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec)
}

/// The bytes of each second as two fields of JSON.
fn bytes(series: &Series) -> String {
    let [bytes_in, bytes_out] = [&series.bytes_in, &series.bytes_out].map(|bytes| json!(bytes));
    format!("\"in_bytes_each_second\":{bytes_in},\"out_bytes_each_second\":{bytes_out}")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::output::Moment;
    use crate::traffic::interest::Wanted;
    use crate::traffic::subject::Subject;

    fn site() -> Site {
        Site::new(Named::Application, MetricsSettings::default(), Arc::default(), None)
    }

    fn frame(moved: u64) -> Frame {
        let subject = Arc::new(Subject::Named((*b"Web").into()));
        let row = Row { subject, bytes_in: 70, bytes_out: 0, moved_in: moved, moved_out: 0, detail: None };
        Frame { rows: vec![row], interval: Some(Duration::from_secs(1)), ..Frame::at(Moment::now()) }
    }

    fn request(path: &str, after: Option<u64>, with_history: bool) -> Request {
        let (moved_only, range, takes_openmetrics) = (false, None, false);
        Request { is_head: false, path: path.into(), after, moved_only, with_history, range, takes_openmetrics }
    }

    fn answer(site: &mut Site, request: &Request) -> Option<Value> {
        let response = site.answer(request, Instant::now())?;
        assert_eq!((response.status, response.content_type), (Status::Ok, JSON));
        Some(serde_json::from_slice(&response.body).unwrap())
    }

    #[test]
    fn figures_wait_for_a_whole_frame_later_than_the_last_that_the_client_has() {
        let mut site = site();
        assert!(answer(&mut site, &request("/data.json", None, false)).is_none());
        assert_eq!(site.interest.of_this_frame(), Wanted::All);
        site.take(Message::Moved(frame(7)));
        assert!(answer(&mut site, &request("/data.json", None, false)).is_none());
        site.take(Message::Whole(frame(8)));
        let data = answer(&mut site, &request("/data.json", Some(1), false)).unwrap();
        assert_eq!(data["program"]["ticks"], 2);
        assert_eq!(data["records"][0]["application"], "Web");
        assert_eq!((&data["records"][0]["in_bytes_per_second"], &data["tick"]["records"]), (&8.into(), &1.into()));
        assert!(data["history"].is_null());
        assert!(answer(&mut site, &request("/data.json", Some(2), false)).is_none());
    }

    #[test]
    fn who_has_the_last_tick_but_one_gets_what_has_moved_since_and_others_all() {
        let mut site = site();
        let rests =
            Row { moved_in: 0, subject: Arc::new(Subject::Named((*b"rests").into())), ..frame(0).rows[0].clone() };
        let whole = || Frame { rows: vec![frame(8).rows[0].clone(), rests.clone()], ..frame(8) };
        let records = |site: &mut Site, after| {
            let request = Request { moved_only: true, ..request("/data.json", Some(after), false) };
            answer(site, &request)
                .map(|data| (data["records"].as_array().unwrap().len(), data["program"]["moved_only"] == true))
        };
        site.take(Message::Whole(whole()));
        site.take(Message::Whole(whole()));
        assert_eq!(
            [records(&mut site, 0), records(&mut site, 1), records(&mut site, 2)],
            [Some((2, false)), Some((1, true)), None]
        );
        // Only a frame with all rows does for who has missed one.
        site.take(Message::Moved(frame(8)));
        assert_eq!([records(&mut site, 1), records(&mut site, 2)], [None, Some((1, true))]);
    }

    #[test]
    fn the_history_has_the_bytes_of_each_second_also_those_that_nobody_looked_at() {
        let mut site = site();
        let mut at = Moment::now();
        for moved in [3, 4] {
            site.take(Message::Moved(Frame { at, ..frame(moved) }));
            at.monotonic += Duration::from_secs(1);
        }
        site.take(Message::Whole(Frame { at, ..frame(5) }));
        let data = answer(&mut site, &request("/data.json", None, true)).unwrap();
        let series = &data["history"][0];
        assert_eq!(series["application"], "Web");
        let bytes = series["in_bytes_each_second"].as_array().unwrap();
        assert_eq!((bytes.len(), &bytes[596..]), (600, &[0, 3, 4, 5].map(Value::from)[..]));
        assert_eq!(data["other_history"]["out_bytes_each_second"].as_array().unwrap().len(), 600);
    }

    #[test]
    fn notes_stay_for_those_who_come_later() {
        let mut site = site();
        for note in 0..30 {
            site.take(Message::Events(Frame { notes: vec![format!("note {note}")], ..Frame::at(Moment::now()) }));
        }
        site.take(Message::Whole(frame(1)));
        let data = answer(&mut site, &request("/data.json", None, false)).unwrap();
        let notes = data["notes"].as_array().unwrap();
        assert_eq!((notes.len(), &notes[19]["message"]), (MOST_EVENTS, &"note 29".into()));
        assert_eq!(data["program"]["ticks"], 1);
    }

    #[test]
    fn it_is_healthy_as_long_as_ticks_go_on() {
        let mut site = site();
        let now = Instant::now();
        let health = |site: &mut Site, at| site.answer(&request("/healthz", None, false), at).unwrap().status;
        assert_eq!(health(&mut site, now), Status::Unavailable);
        site.take(Message::Moved(frame(1)));
        assert_eq!(health(&mut site, now + Duration::from_secs(10)), Status::Ok);
        assert_eq!(health(&mut site, now + Duration::from_secs(20)), Status::Unavailable);
    }
}
