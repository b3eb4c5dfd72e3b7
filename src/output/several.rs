//! Several outputs at once: stdout, and a server.

use std::io;

use super::{Announcement, Frame, Output};

/// Shows each frame by each of its outputs.
pub struct Several(pub Vec<Box<dyn Output>>);

impl Several {
    fn each(&mut self, mut call: impl FnMut(&mut dyn Output) -> io::Result<()>) -> io::Result<()> {
        // All of them, also where one has failed.
        let results: Vec<_> = self.0.iter_mut().map(|output| call(&mut **output)).collect();
        results.into_iter().collect()
    }
}

impl Output for Several {
    fn show(&mut self, frame: &Frame) -> io::Result<()> {
        self.each(|output| output.show(frame))
    }

    fn tell(&mut self, frame: &Frame) -> io::Result<()> {
        self.each(|output| output.tell(frame))
    }

    fn announce(&mut self, announcements: &[Announcement]) -> io::Result<()> {
        self.each(|output| output.announce(announcements))
    }
}
