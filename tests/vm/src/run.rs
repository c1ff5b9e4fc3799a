//! Running commands: bounded in time, output captured, the process group killed when late.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::outcome::{Context, Fail, Outcome};

/// A command about to run.
pub struct Cmd {
    command: Command,
    line: String,
    stdin: Vec<u8>,
    timeout: Duration,
}

/// What a command that ended has left.
pub struct Ran {
    pub line: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub elapsed: Duration,
    /// Something (a daemon) kept the output pipes open after the command had ended: a shell's
    /// `$(command)` would hang.
    pub held_open: bool,
}

impl Cmd {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let line = program.as_ref().to_string_lossy().into_owned();
        Self { command: Command::new(program), line, stdin: Vec::new(), timeout: Duration::from_secs(30) }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.line.push(' ');
        self.line.push_str(&arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    pub fn stdin(mut self, text: &str) -> Self {
        self.stdin = text.as_bytes().to_vec();
        self
    }

    pub fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = Duration::from_secs(seconds);
        self
    }

    /// Starts it and returns at once.
    pub fn spawn(mut self) -> Outcome<Background> {
        self.command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().context(format!("cannot start {}", self.line))?;
        if let Some(mut pipe) = child.stdin.take() {
            let bytes = self.stdin;
            // A child that does not read its input closes the pipe: no failure of ours.
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let stdout = Drain::start(child.stdout.take());
        let stderr = Drain::start(child.stderr.take());
        Ok(Background { line: self.line, child, stdout, stderr, started: Instant::now(), reaped: false })
    }

    /// Runs it to its end; an error only when it could not start or was late.
    pub fn run(self) -> Outcome<Ran> {
        let timeout = self.timeout;
        self.spawn()?.wait(timeout)
    }

    /// Runs it, requires success, returns its standard output.
    pub fn ok(self) -> Outcome<String> {
        Ok(self.run()?.done()?.stdout)
    }
}

impl Ran {
    /// It must have succeeded.
    pub fn done(self) -> Outcome<Ran> {
        if self.status.success() { Ok(self) } else { Err(self.fail("failed")) }
    }

    /// A failure that shows this command's output.
    pub fn fail(&self, why: &str) -> Fail {
        Fail::new(format!("`{}` {why} ({})", self.line, describe(self.status)))
            .detail("its stderr", &self.stderr)
            .detail("its stdout", &self.stdout)
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".into(),
    }
}

/// A command that runs beside the test. Killed when dropped.
pub struct Background {
    pub line: String,
    child: Child,
    stdout: Drain,
    stderr: Drain,
    started: Instant,
    reaped: bool,
}

impl Background {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its status when it has ended.
    pub fn ended(&mut self) -> Outcome<Option<ExitStatus>> {
        let status = self.child.try_wait().context(format!("cannot wait for {}", self.line))?;
        self.reaped |= status.is_some();
        Ok(status)
    }

    /// What it has printed so far.
    pub fn stdout_so_far(&self) -> String {
        self.stdout.text()
    }

    pub fn stderr_so_far(&self) -> String {
        self.stderr.text()
    }

    /// Waits for its end; kills it and fails when that takes longer than `timeout`.
    pub fn wait(mut self, timeout: Duration) -> Outcome<Ran> {
        let deadline = Instant::now() + timeout;
        let mut pause = Duration::from_millis(1);
        let status = loop {
            if let Some(status) = self.ended()? {
                break status;
            }
            if Instant::now() >= deadline {
                let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
                let stuck = if self.kill() { "" } else { " and does not die on SIGKILL" };
                return Err(Fail::new(format!(
                    "`{}` did not end within {} s{stuck}",
                    self.line,
                    timeout.as_secs()
                ))
                .detail("its stderr", &stderr)
                .detail("its stdout", &stdout));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let elapsed = self.started.elapsed();
        let patience = Instant::now() + Duration::from_secs(2);
        let held_open = !(self.stdout.finished(patience) && self.stderr.finished(patience));
        let line = std::mem::take(&mut self.line);
        Ok(Ran { line, status, stdout: self.stdout.text(), stderr: self.stderr.text(), elapsed, held_open })
    }

    /// SIGKILL to its process group; true when it was reaped within two seconds.
    fn kill(&mut self) -> bool {
        signal(-(self.child.id() as i32), libc::SIGKILL);
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            if matches!(self.ended(), Ok(Some(_)) | Err(_)) {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
    }
}

/// Reads a pipe to its end on a thread, so that a full pipe never stops a child.
struct Drain {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Drain {
    fn start(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = pipe.map(|mut pipe| {
            thread::spawn(move || {
                let mut chunk = [0u8; 8192];
                while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                    if let Ok(mut sink) = sink.lock() {
                        sink.extend_from_slice(&chunk[..count]);
                    }
                }
            })
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        self.bytes.lock().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn finished(&self, deadline: Instant) -> bool {
        while let Some(reader) = &self.reader {
            if reader.is_finished() {
                break;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

/// Becomes this command, which gets EAFNOSUPPORT where it asks for a netlink socket, as under systemd's
/// RestrictAddressFamilies=.
pub fn without_netlink(command: &[String]) -> Outcome<u8> {
    use std::os::unix::process::CommandExt;
    let statement = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, is_equal, answer) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    // Of seccomp_data: the number of the call at 0, the low half of its first argument at 16.
    let mut filter = [
        statement(load, 0, 0, 0),
        statement(is_equal, 0, 3, libc::SYS_socket as u32),
        statement(load, 0, 0, 16),
        statement(is_equal, 0, 1, libc::AF_NETLINK as u32),
        statement(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32),
        statement(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: both calls take numbers, and the second a program that it copies before it returns.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    if !set {
        return Err(Fail::new(format!("no filter: {}", std::io::Error::last_os_error())));
    }
    let error = std::process::Command::new(&command[0]).args(&command[1..]).exec();
    Err(Fail::new(format!("cannot run {}: {error}", command[0])))
}

/// Sends a signal; false when there is nobody to take it. A negative id names a process group.
pub fn signal(pid: i32, number: i32) -> bool {
    // SAFETY: kill takes two integers and touches no memory of ours.
    unsafe { libc::kill(pid, number) == 0 }
}

/// Waits until `ready` says yes; false when `limit` has passed first.
pub fn wait_until(limit: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if ready() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
