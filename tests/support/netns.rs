//! Network namespaces for tests against the real kernel: made under unique names, entered by threads, deleted on drop.
//!
//! Traffic never leaves the namespaces made here. The only `unsafe` of the tests is in this file.

#![allow(dead_code, reason = "each program uses its own part")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

/// The server's address on a pair's link, and the client's.
pub(crate) const SERVER: &str = "10.99.0.1";
pub(crate) const CLIENT: &str = "10.99.0.2";

static NAMESPACES: AtomicU32 = AtomicU32::new(0);

/// A network namespace with `lo` up, deleted on drop with all that is in it.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one. Fails loudly without root.
    pub(crate) fn new() -> Namespace {
        let number = NAMESPACES.fetch_add(1, Ordering::Relaxed);
        // The time keeps a name that an earlier process of this number left behind, when it was killed, from being taken.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let name = format!("memtap-{}-{number}-{:x}", std::process::id(), now.subsec_nanos());
        if let Err(reason) = run_ip(&["netns", "add", &name]) {
            panic!("live tests need root and the `ip` program, to make network namespaces: {reason}");
        }
        let namespace = Namespace { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// As `ip netns` knows it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in the namespace, with arguments separated by blanks.
    pub(crate) fn ip(&self, arguments: &str) {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split_whitespace());
        run_ip(&all).unwrap_or_else(|reason| panic!("{reason}"));
    }

    /// A program to be started in the namespace.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Calls `body` on a thread in the namespace. What it opens stays there, whoever uses it later.
    pub(crate) fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| self.spawn(scope, body).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts `body` on a thread in the namespace.
    pub(crate) fn spawn<'scope, T: Send + 'scope>(
        &self,
        scope: &'scope thread::Scope<'scope, '_>,
        body: impl FnOnce() -> T + Send + 'scope,
    ) -> thread::ScopedJoinHandle<'scope, T> {
        let path = format!("/var/run/netns/{}", self.name);
        scope.spawn(move || {
            let namespace = File::open(&path).expect("the namespace exists");
            // SAFETY: takes numbers only; it moves this thread, which ends with `body`.
            let returned = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(returned, 0, "setns: {}", io::Error::last_os_error());
            body()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = run_ip(&["netns", "del", &self.name]);
        if !thread::panicking() {
            deleted.unwrap();
        }
    }
}

/// Two namespaces joined by a veth pair named `veth0` on either side, both ends up and with an address.
pub(crate) struct Pair {
    pub(crate) server: Namespace,
    pub(crate) client: Namespace,
}

impl Pair {
    pub(crate) fn new() -> Pair {
        let pair = Pair { server: Namespace::new(), client: Namespace::new() };
        pair.link();
        pair
    }

    /// Makes the link; again after it was deleted.
    pub(crate) fn link(&self) {
        self.server.ip(&format!("link add veth0 type veth peer name veth0 netns {}", self.client.name));
        self.server.ip(&format!("addr add {SERVER}/24 dev veth0"));
        self.client.ip(&format!("addr add {CLIENT}/24 dev veth0"));
        self.server.ip("link set veth0 up");
        self.client.ip("link set veth0 up");
    }
}

/// A device without an Ethernet header whose other end is a file: what is sent to it can be read, what is written comes in.
/// To be made by a thread in the namespace.
pub(crate) fn open_tun(name: &str) -> File {
    let file =
        File::options().read(true).write(true).open("/dev/net/tun").expect("live tests need /dev/net/tun");
    // SAFETY: `ifreq` is made of integers and of a union of such; zeros are a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).expect("the name is ASCII");
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the kernel reads and writes within the request, which lives during the call.
    let returned = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(returned, 0, "TUNSETIFF: {}", io::Error::last_os_error());
    file
}

fn run_ip(arguments: &[&str]) -> Result<(), String> {
    let said = |text: &str| format!("ip {}: {text}", arguments.join(" "));
    let output = Command::new("ip").args(arguments).output().map_err(|error| said(&error.to_string()))?;
    if output.status.success() { Ok(()) } else { Err(said(String::from_utf8_lossy(&output.stderr).trim())) }
}
