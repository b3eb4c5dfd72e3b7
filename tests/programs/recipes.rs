//! Every command of docs/recipes.md works as it stands there.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;

/// The commands: what is in the blocks for a shell, and that of a line for cron.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    for block in text.split("\n```").skip(1).step_by(2) {
        let (language, command) = block.split_once('\n').unwrap();
        commands.push(match language {
            "sh" => command.to_owned(),
            "cron" => command.splitn(6, ' ').nth(5).unwrap().to_owned(),
            _ => panic!("a block of {language:?}"),
        });
    }
    commands
}

/// Moves bytes to and from a process of this name, until it is told to stop.
fn talk(name: &str, is_over: &AtomicBool) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = OwnedFd::from(listener.accept().unwrap().0);
    let stdout = server.try_clone().unwrap();
    let mut echo = Command::new("cat").arg0(name).stdin(server).stdout(stdout).spawn().unwrap();
    let mut buffer = [7; 5000];
    while !is_over.load(Ordering::Relaxed) {
        client.write_all(&buffer).unwrap();
        client.read_exact(&mut buffer).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(client);
    echo.wait().unwrap();
}

/// What the files of a directory hold, without the programs.
fn written(directory: &Path) -> usize {
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().metadata().unwrap());
    files.filter(fs::Metadata::is_file).map(|metadata| metadata.len() as usize).sum()
}

#[test]
fn every_command_of_the_recipes_works_as_it_stands_there() {
    let directory = TempDir::new().unwrap();
    let programs = directory.path().join("programs");
    fs::create_dir(&programs).unwrap();
    for program in [env!("CARGO_BIN_EXE_runmonitor"), env!("CARGO_BIN_EXE_runaggregator")] {
        std::os::unix::fs::symlink(program, programs.join(Path::new(program).file_name().unwrap())).unwrap();
    }
    // Whoever runs the tests sees this process.
    fs::write(programs.join("sudo"), "#!/bin/sh\nexec \"$@\"\n").unwrap();
    fs::set_permissions(programs.join("sudo"), Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let name = format!("recipes{}", std::process::id());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let talking = scope.spawn(|| talk(&name, &is_over));
        let result = std::panic::catch_unwind(|| {
            let mut shown_by_name = 0;
            for command in commands(include_str!("../../docs/recipes.md")) {
                let before = written(directory.path());
                let mut shell = Command::new("bash");
                shell.args(["-euo", "pipefail", "-c", &command]).env("PATH", &path).current_dir(directory.path());
                let output = shell.stdin(Stdio::null()).output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success() && !said.contains("jq: "), "{command}\n{said}");
                // A port that nobody talks to has no line.
                let has_output = !output.stdout.is_empty() || written(directory.path()) > before;
                assert!(has_output || command.contains("$port"), "{command} prints nothing\n{said}");
                shown_by_name += usize::from(String::from_utf8_lossy(&output.stdout).contains(&name));
            }
            assert!(shown_by_name >= 4, "{shown_by_name}");
        });
        is_over.store(true, Ordering::Relaxed);
        talking.join().unwrap();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}
