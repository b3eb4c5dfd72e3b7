//! The interactive view in a real terminal: its keys, and that the terminal is given back.

use std::io::{Write, stderr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::http::get;
use crate::common::program::{Running, wait_for};
use crate::common::runmonitor::{Traffic, runmonitor};

/// A terminal of 80 columns and 24 lines, in which a shell runs.
struct Tmux {
    socket: String,
}

impl Tmux {
    /// `None` where tmux is not installed: the test is left out, unless all must run.
    fn new() -> Option<Self> {
        if let Err(error) = Command::new("tmux").arg("-V").output() {
            assert!(std::env::var_os("BWMON_TESTS_COMPLETE").is_none(), "tmux: {error}");
            // Past the harness, which would not show it.
            let _ = writeln!(stderr(), "left out: a test of --top, which needs tmux ({error})");
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let tmux = Self { socket: format!("bwmon-{}-{number}", std::process::id()) };
        let shell = "PS1='ready$ ' exec bash --norc --noprofile -i";
        tmux.run(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", shell]);
        tmux.wait("ready$");
        Some(tmux)
    }

    fn run(&self, arguments: &[&str]) -> String {
        let mut tmux = Command::new("tmux");
        tmux.args(["-L", &self.socket]).args(arguments).env("LANG", "C.UTF-8").env_remove("TMUX").stdin(Stdio::null());
        let output = tmux.output().expect("tmux");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn screen(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }

    fn keys(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }

    /// Types a command line.
    fn command(&self, line: &str) {
        self.run(&["send-keys", "-l", line]);
        self.keys(&["Enter"]);
    }

    /// Waits until the screen shows this. Returns the screen.
    fn wait(&self, text: &str) -> String {
        self.wait_until(text, |screen| screen.contains(text))
    }

    fn wait_until(&self, what: &str, is_there: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        wait_for(&format!("{what} on the screen"), || {
            let screen = self.screen();
            if last != screen {
                last.clone_from(&screen);
                println!("{screen}");
            }
            is_there(&screen).then_some(screen)
        })
    }

    /// Starts the view of this traffic only.
    fn start_top(&self, traffic: &Traffic) {
        self.start_top_with(traffic, "");
    }

    /// The same, with more arguments.
    fn start_top_with(&self, traffic: &Traffic, arguments: &str) {
        let program = env!("CARGO_BIN_EXE_runmonitor");
        self.command(&format!(
            "echo be''fore; {program} --top --source=sockets --include={} {arguments}; echo ended $?",
            traffic.name
        ));
        self.wait_until("the view", |screen| screen.starts_with(" bwmon ") && screen.contains(&traffic.name));
    }

    /// Waits until the shell has the terminal back, with what was there before, and echoes.
    fn wait_for_the_shell(&self) {
        let screen = self.wait("ended 0");
        assert!(screen.contains("before\n"), "{screen}");
        self.command("stty -a | tr ' ' '\\n' | grep -xe icanon -e echo | tr '\\n' +");
        self.wait("icanon+echo+");
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-L", &self.socket, "kill-server"]).stderr(Stdio::null()).status();
    }
}

/// The process that a shell of ours has started to watch this traffic.
fn pid_of(traffic: &Traffic) -> Pid {
    let include = format!("--include={}", traffic.name);
    let pids =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_ours = |pid: &i32| {
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command_line.split(|byte| *byte == 0).any(|word| word == include.as_bytes())
    };
    Pid::from_raw({ pids }.find(is_ours).expect("the program"))
}

/// Whether a process has not ended.
fn is_running(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

#[test]
fn keys_do_what_the_help_says() {
    let Some(tmux) = Tmux::new() else { return };
    let traffic = Traffic::flowing();
    tmux.start_top(&traffic);
    tmux.keys(&["?"]);
    tmux.wait("any key closes");
    tmux.keys(&["Escape"]);
    tmux.wait_until("no help", |screen| !screen.contains("any key closes"));
    tmux.keys(&["/"]);
    tmux.keys(&["nobody"]);
    tmux.wait("Nothing matches nobody");
    tmux.keys(&["Escape"]);
    tmux.wait_until("all rows", |screen| screen.contains(&traffic.name) && !screen.contains("Filter"));
    // Other processes of the host may have left bytes without an owner.
    tmux.keys(&["/", "TRAFFIC-", "Enter"]);
    tmux.wait("1 of ");
    tmux.keys(&["Down"]);
    tmux.wait("\u{203a}");
    tmux.keys(&["Enter"]);
    tmux.wait("REMOTE END");
    tmux.keys(&["Escape", "g"]);
    tmux.wait("PROGRAM");
    tmux.keys(&["u"]);
    tmux.wait("bit/s");
    tmux.keys(&["Space"]);
    tmux.wait("PAUSED at");
    tmux.keys(&["q"]);
    tmux.wait_for_the_shell();
}

#[test]
fn the_view_follows_the_size_of_the_terminal() {
    let Some(tmux) = Tmux::new() else { return };
    let traffic = Traffic::flowing();
    tmux.start_top(&traffic);
    tmux.run(&["resize-window", "-x", "200", "-y", "50"]);
    let screen = tmux.wait("UNIT / CONTAINER");
    assert_eq!(screen.lines().count(), 50);
    tmux.run(&["resize-window", "-x", "30", "-y", "5"]);
    tmux.wait_until("the sums alone", |screen| screen.starts_with("in ") && screen.lines().count() <= 5);
    tmux.keys(&["C-c"]);
    tmux.wait("ended 0");
}

#[test]
fn the_terminal_is_given_back_after_every_signal() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let Some(tmux) = Tmux::new() else { return };
        let traffic = Traffic::flowing();
        tmux.start_top(&traffic);
        kill(pid_of(&traffic), signal).unwrap();
        tmux.wait_for_the_shell();
    }
}

#[test]
fn a_terminal_that_is_closed_ends_the_program() {
    let Some(tmux) = Tmux::new() else { return };
    let traffic = Traffic::flowing();
    tmux.start_top(&traffic);
    let pid = pid_of(&traffic);
    tmux.run(&["kill-server"]);
    wait_for("the program's end", || (!is_running(pid)).then_some(()));
}

#[test]
fn a_terminal_that_takes_nothing_does_not_keep_the_program_from_ending() {
    let Some(tmux) = Tmux::new() else { return };
    let traffic = Traffic::flowing();
    tmux.start_top(&traffic);
    let pid = pid_of(&traffic);
    // As Ctrl-S does where the terminal has flow control (tcflow(3)).
    tmux.run(&["send-keys", "C-s"]);
    kill(pid, Signal::SIGTERM).unwrap();
    wait_for("the program's end", || (!is_running(pid)).then_some(()));
}

#[test]
fn ctrl_z_gives_the_terminal_back_until_fg() {
    let Some(tmux) = Tmux::new() else { return };
    let traffic = Traffic::flowing();
    tmux.start_top(&traffic);
    tmux.keys(&["C-z"]);
    tmux.wait("Stopped");
    tmux.command("stty -a | tr ' ' '\\n' | grep -xe icanon -e echo | tr '\\n' +; fg");
    tmux.wait_until("the view", |screen| screen.starts_with(" bwmon ") && screen.contains(&traffic.name));
    tmux.keys(&["q"]);
    tmux.wait("icanon+echo+");
}

#[test]
fn the_view_and_the_server_show_the_same() {
    let Some(tmux) = Tmux::new() else { return };
    let traffic = Traffic::flowing();
    tmux.start_top_with(&traffic, "--http=0");
    tmux.keys(&["n"]);
    let screen = tmux.wait("the figures are at http://");
    let (_, rest) = screen.split_once("the figures are at http://").unwrap();
    let server = rest.split('/').next().unwrap().parse().unwrap();
    assert!(get(server, "/data.json").body.contains(&traffic.name));
    tmux.keys(&["n"]);
    tmux.wait(&traffic.name);
    tmux.keys(&["C-z"]);
    tmux.wait("Stopped");
    tmux.command("fg");
    tmux.wait_until("the view", |screen| screen.starts_with(" bwmon ") && screen.contains(&traffic.name));
    tmux.keys(&["q"]);
    tmux.wait("Stopped");
}

#[test]
fn a_plain_view_does_not_echo_and_keeps_what_was_before_in_the_scrollback() {
    let Some(tmux) = Tmux::new() else { return };
    let traffic = Traffic::flowing();
    let program = env!("CARGO_BIN_EXE_runmonitor");
    tmux.command("echo be''fore");
    tmux.command(&format!("clear; echo first; {program} --source=sockets --include={}", traffic.name));
    tmux.wait_until("the view", |screen| screen.contains("bytes in /") && screen.contains("all: 1 process"));
    tmux.keys(&["stray"]);
    for _ in 0..2 {
        let clock = |screen: &str| screen.lines().next().unwrap_or_default().to_owned();
        let before = clock(&tmux.screen());
        let screen = tmux.wait_until("another view", |screen| clock(screen) != before);
        assert!(!screen.contains("stray"), "{screen}");
    }
    let scrolled = tmux.run(&["capture-pane", "-p", "-S", "-"]);
    assert_eq!(scrolled.matches("bytes in /").count(), 1, "{scrolled}");
    assert!(scrolled.contains("first\n"), "{scrolled}");
    tmux.keys(&["C-c"]);
    let screen = tmux.wait("ready$");
    assert!(screen.contains("all: 1 process"), "{screen}");
    tmux.command("stty -a | tr ' ' '\\n' | grep -xe icanon -e echo | tr '\\n' +");
    tmux.wait("icanon+echo+");
}

#[test]
fn without_a_terminal_the_view_says_what_it_needs() {
    let program = Running::start(&mut runmonitor(&["--top"]));
    let (status, lines, errors) = program.end();
    assert_eq!((status.code(), lines), (Some(1), Vec::new()));
    assert_eq!(errors, ["runmonitor: --top needs a terminal on stdout; without --top, a pipe or a file gets lines"]);
}
