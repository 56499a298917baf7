//! Another network namespace: that of a container, whose interfaces are not ours.

use crate::cli::Exit;
use crate::runtime::failure::Failure;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Where `ip netns` keeps its names.
const NAMED: &str = "/run/netns";

/// Moves the process there. To be called before any socket is opened and any thread started: sockets stay where they were made, and
/// threads begin where their maker is. Files and local sockets are not concerned.
pub(super) fn enter(netns: &str) -> Result<(), Failure> {
    let path = path_of(netns);
    let failed = |exit, reason: String| {
        Failure::new(exit, format!("cannot listen in network namespace {netns:?}: {reason}"))
    };
    let file = File::open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => failed(
            Exit::BadConfig,
            format!("there is no {}; `ip netns list` tells the names", path.display()),
        ),
        _ => failed(Exit::Failure, format!("{}: {error}", path.display())),
    })?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|error| match error {
        rustix::io::Errno::PERM => {
            failed(Exit::NoPermission, "CAP_SYS_ADMIN is missing; run as root".to_owned())
        }
        rustix::io::Errno::INVAL => failed(Exit::BadConfig, format!("{} is none", path.display())),
        other => failed(Exit::Failure, other.to_string()),
    })
}

/// A number is a process, anything else a name.
fn path_of(netns: &str) -> PathBuf {
    match netns.parse::<u32>() {
        Ok(process) => format!("/proc/{process}/ns/net").into(),
        Err(_) => PathBuf::from(NAMED).join(netns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_process_and_all_else_a_name() {
        assert_eq!(path_of("4321"), PathBuf::from("/proc/4321/ns/net"));
        assert_eq!(path_of("cache"), PathBuf::from("/run/netns/cache"));
    }

    #[test]
    fn what_is_not_there_is_said() {
        let failure = enter("no-such-namespace").unwrap_err();
        assert!(failure.to_string().contains("there is no /run/netns/no-such-namespace"), "{failure}");
    }
}
