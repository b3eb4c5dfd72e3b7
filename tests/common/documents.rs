//! The documents of the repository, and their blocks of code.
//!
//! The first word behind the fence of a block is its language, the second says what the block is for:
//!
//! | | |
//! |---|---|
//! | `sh` | a script that the live tests run |
//! | `sh lines` | the same for each of its lines |
//! | `sh install`, `sh cargo` | not run: it changes the host, or takes minutes |
//! | `console` | commands behind `$`, which are run too, and some of the lines that they print |
//! | `cron` | a line of a crontab, whose command is run |
//! | `help PROGRAM` | what `PROGRAM -h` prints |
//! | `screen` | lines of the files in docs/screens |
//! | `ini monitors`, `ini applications`, `ini notifications` | a configuration file without a mistake |
//! | `ini unit` | a part of a unit of systemd |
//! | `yaml`, `yaml targets`, `promql` | for Prometheus, whose promtool reads them |
//! | `sql` | queries of a history, which a test of the library runs |
//! | `text` | what tests hold elsewhere |
//!
//! A block that is only indented is not run.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::fs;
use std::path::{Path, PathBuf};

/// The directory of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Markdown file.
pub struct Document {
    /// Relative to the repository.
    pub path: PathBuf,
    pub text: String,
}

/// A block of code in a document.
pub struct Block {
    /// The words behind its fence.
    pub kind: String,
    pub text: String,
    /// The line of its fence, from 1 on.
    pub line: usize,
    /// Which section of the document it is in.
    pub section: usize,
}

impl Document {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        Self { path, text }
    }

    /// All documents.
    pub fn all() -> Vec<Self> {
        let mut paths = Vec::new();
        for directory in ["", "docs", "samples"] {
            for entry in fs::read_dir(root().join(directory)).unwrap() {
                let path = Path::new(directory).join(entry.unwrap().file_name());
                if path.extension().is_some_and(|extension| extension == "md") {
                    paths.push(path);
                }
            }
        }
        paths.sort();
        paths.into_iter().map(Self::read).collect()
    }

    /// The document at a path.
    pub fn at(path: &str) -> Self {
        Self::read(path.into())
    }

    pub fn blocks(&self) -> Vec<Block> {
        let (mut blocks, mut open, mut section) = (Vec::new(), None::<Block>, 0);
        for (line, text) in (1..).zip(self.text.lines()) {
            match (text.strip_prefix("```"), &mut open) {
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some(kind), None) => {
                    open = Some(Block { kind: kind.to_owned(), text: String::new(), line, section });
                }
                (None, Some(block)) => {
                    block.text += text;
                    block.text += "\n";
                }
                (None, None) => section += usize::from(text.starts_with('#')),
            }
        }
        assert!(open.is_none(), "{}: a block has no end", self.path.display());
        blocks
    }

    /// What is not in a block, line by line, with the number of each.
    pub fn prose(&self) -> Vec<(usize, &str)> {
        let mut in_block = false;
        let lines = (1..).zip(self.text.lines());
        let mut prose = Vec::new();
        for (number, line) in lines {
            if line.starts_with("```") {
                in_block = !in_block;
            } else if !in_block {
                prose.push((number, line));
            }
        }
        prose
    }

    /// What is between backticks outside of blocks, with the line where it begins. It may go on in the next line. Indented lines
    /// are code, too.
    pub fn code(&self) -> Vec<(usize, String)> {
        let (indented, prose): (Vec<_>, Vec<_>) =
            self.prose().into_iter().partition(|(_, line)| line.starts_with("    "));
        let mut code: Vec<_> = indented.into_iter().map(|(number, line)| (number, line.trim().to_owned())).collect();
        for paragraph in prose.chunk_by(|(number, line), (next, _)| number + 1 == *next && !line.is_empty()) {
            let text: Vec<&str> = paragraph.iter().map(|(_, line)| *line).collect();
            let text = text.join("\n");
            let mut line = paragraph[0].0;
            for (n, part) in text.split('`').enumerate() {
                if n % 2 == 1 {
                    code.push((line, part.replace('\n', " ")));
                }
                line += part.matches('\n').count();
            }
        }
        code
    }
}
