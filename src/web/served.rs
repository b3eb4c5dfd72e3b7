//! An output of the command line, beside the server: a frame may have more than it shows by itself.

use std::io;

use super::Web;
use crate::output::{Announcement, Frame, Output};

/// What an output shows beside the bytes of each row.
#[derive(Debug, Clone, Copy)]
pub struct Shows {
    /// The bytes without an owner.
    pub unowned: bool,
    /// The remote ends of each row.
    pub remotes: bool,
}

/// Shows frames by an output, and serves them.
pub struct Served {
    output: Box<dyn Output>,
    shows: Shows,
    web: Web,
}

impl Served {
    /// Shows by `output` what it `shows`, and serves all there is.
    pub fn new(output: Box<dyn Output>, shows: Shows, web: Web) -> Self {
        Self { output, shows, web }
    }
}

impl Shows {
    /// The frame as it would be without the server; `None` if it is that already.
    fn of(self, frame: &Frame) -> Option<Frame> {
        let hides_unowned = !self.unowned && !frame.unowned.is_empty();
        let hides_remotes = !self.remotes && frame.rows.iter().any(|row| row.detail.is_some());
        if !hides_unowned && !hides_remotes {
            return None;
        }
        Some(Frame {
            interval: frame.interval,
            rows: frame.rows.iter().map(|row| if self.remotes { row.clone() } else { row.without_remotes() }).collect(),
            unowned: if self.unowned { frame.unowned.clone() } else { Vec::new() },
            ..frame.without_figures()
        })
    }
}

impl Output for Served {
    fn show(&mut self, frame: &Frame) -> io::Result<()> {
        self.web.show(frame)?;
        self.output.show(self.shows.of(frame).as_ref().unwrap_or(frame))
    }

    fn tell(&mut self, frame: &Frame) -> io::Result<()> {
        self.web.tell(frame)?;
        self.output.tell(frame)
    }

    fn announce(&mut self, announcements: &[Announcement]) -> io::Result<()> {
        self.web.announce(announcements)?;
        self.output.announce(announcements)
    }

    fn is_written(&self) -> bool {
        self.output.is_written()
    }

    fn suspend(&mut self) {
        self.output.suspend();
    }

    fn refresh(&mut self) {
        self.output.refresh();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::calendar::Period;
    use crate::output::{Moment, QuotaNotification};
    use crate::traffic::detail::{Detail, ProcessId};
    use crate::traffic::rates::Row;
    use crate::traffic::subject::{Reason, Subject};

    const PROCESS: ProcessId = (1, 100);

    fn row(subject: Subject, detail: Option<Detail>) -> Row {
        let detail = detail.map(Arc::new);
        Row { subject: Arc::new(subject), bytes_in: 9, bytes_out: 9, moved_in: 1, moved_out: 1, detail }
    }

    fn quota() -> QuotaNotification {
        let application = Arc::new(Subject::Named((*b"a").into()));
        let (period, command_failure) = (Period::Day, None);
        let (used_bytes, quota_bytes, period_start) = (9, 9, 0);
        QuotaNotification {
            rule: 1,
            application,
            used_bytes,
            quota_bytes,
            period,
            period_start,
            exceeded: true,
            command_failure,
        }
    }

    fn frame() -> Frame {
        let detail = Detail { processes: vec![PROCESS], connections: 2, other_remotes: (9, 9), ..Default::default() };
        Frame {
            rows: vec![row(Subject::Named((*b"a").into()), Some(detail))],
            unowned: vec![row(Subject::Unowned(Reason::Gone), None)],
            notes: vec!["a note".to_owned()],
            quotas: vec![quota()],
            ..Frame::at(Moment::now())
        }
    }

    #[test]
    fn what_only_the_server_needs_is_not_shown() {
        let frame = frame();
        let shown = Shows { unowned: false, remotes: false }.of(&frame).unwrap();
        assert!(shown.unowned.is_empty());
        assert_eq!((&shown.notes, &shown.quotas), (&frame.notes, &frame.quotas));
        let detail = Detail { processes: vec![PROCESS], connections: 2, ..Default::default() };
        assert_eq!(shown.rows, [row(Subject::Named((*b"a").into()), Some(detail))]);
        assert_eq!((shown.notes, shown.at), (frame.notes.clone(), frame.at));
    }

    #[test]
    fn what_was_asked_for_is_shown() {
        let frame = frame();
        assert!(Shows { unowned: true, remotes: true }.of(&frame).is_none());
        let shown = Shows { unowned: false, remotes: true }.of(&frame).unwrap();
        assert_eq!((&shown.rows, &shown.unowned), (&frame.rows, &Vec::new()));
        let shown = Shows { unowned: true, remotes: false }.of(&frame).unwrap();
        assert_eq!(shown.unowned, frame.unowned);
    }
}
