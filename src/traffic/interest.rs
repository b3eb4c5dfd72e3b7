//! How much of the frames somebody looks at: what nobody sees is not worked out.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

/// What a frame is to have beside the bytes of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing.
    Nothing,
    /// Details of the rows that have moved.
    Moved,
    /// Details of all rows.
    All,
}

/// The wishes of those who look, in another thread than the loop's.
#[derive(Debug, Default)]
pub struct Interest {
    /// The frames that are still to have details of what has moved.
    frames: AtomicU32,
    /// Whether one frame is to have those of all rows.
    all: AtomicBool,
    /// What was decided for the present frame; one more than the number of the [`Wanted`], 0 before that.
    decided: AtomicU8,
}

impl Interest {
    /// The next frames, so many, are to have details of what has moved.
    pub fn follow(&self, frames: u32) {
        self.frames.store(frames, Ordering::Relaxed);
    }

    /// A frame is to have details of all rows, as soon as possible.
    pub(crate) fn want_all(&self) {
        self.all.store(true, Ordering::Relaxed);
    }

    /// What the present frame is to have. It stays the same until [`end_frame`](Self::end_frame).
    pub(crate) fn of_this_frame(&self) -> Wanted {
        const ALL: [Wanted; 3] = [Wanted::Nothing, Wanted::Moved, Wanted::All];
        let decided = usize::from(self.decided.load(Ordering::Relaxed));
        if let Some(wanted) = decided.checked_sub(1).and_then(|at| ALL.get(at)) {
            return *wanted;
        }
        let at =
            if self.all.swap(false, Ordering::Relaxed) { 2 } else { u8::from(self.frames.load(Ordering::Relaxed) > 0) };
        self.decided.store(at + 1, Ordering::Relaxed);
        ALL[usize::from(at)]
    }

    /// The present frame is made.
    pub(crate) fn end_frame(&self) {
        self.decided.store(0, Ordering::Relaxed);
        let frames = self.frames.load(Ordering::Relaxed);
        // This fails if there is a new wish, which is for the frames from now on.
        let _ = self.frames.compare_exchange(frames, frames.saturating_sub(1), Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_in_the_middle_of_a_frame_is_for_the_next() {
        let interest = Interest::default();
        assert_eq!(interest.of_this_frame(), Wanted::Nothing);
        interest.want_all();
        interest.follow(2);
        assert_eq!(interest.of_this_frame(), Wanted::Nothing);
        let next = || {
            interest.end_frame();
            interest.of_this_frame()
        };
        interest.follow(3);
        assert_eq!([next(), next(), next(), next()], [Wanted::All, Wanted::Moved, Wanted::Nothing, Wanted::Nothing]);
    }
}
