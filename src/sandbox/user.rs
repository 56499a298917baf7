//! Whom to become: users of /etc/passwd, read here and not by the C library, which may ask servers and load libraries for it.

use std::io;

use rustix::fs::{Gid, Uid};
use rustix::process::{geteuid, getuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::SandboxError;

const PASSWD: &str = "/etc/passwd";

/// -1 means "leave as it is" to the kernel's calls.
const ID_MAX: u32 = u32::MAX - 1;

/// A user and its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    /// As in /etc/passwd, or the number.
    pub(super) name: String,
    uid: u32,
    gid: u32,
}

impl User {
    /// Finds a user by name or number. A number without an entry has the group of the same number.
    pub(super) fn find(wanted: &str) -> Result<User, SandboxError> {
        let number = wanted.parse().ok().filter(|&uid| uid <= ID_MAX);
        let passwd = match (std::fs::read_to_string(PASSWD), number) {
            (Ok(text), _) => text,
            (Err(_), Some(_)) => String::new(),
            (Err(source), None) => return Err(SandboxError::Passwd { name: wanted.to_owned(), source }),
        };
        let by_number = |uid: u32| {
            find_entry(&passwd, |user| user.uid == uid).unwrap_or(User {
                name: uid.to_string(),
                uid,
                gid: uid,
            })
        };
        find_entry(&passwd, |user| user.name == wanted)
            .or_else(|| number.map(by_number))
            .ok_or_else(|| SandboxError::UnknownUser { name: wanted.to_owned() })
    }

    /// Becomes the user, without supplementary groups, in a way that cannot be taken back.
    pub(super) fn become_it(&self) -> Result<(), SandboxError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        if uid == getuid() && uid == geteuid() && !uid.is_root() {
            return Ok(());
        }
        // The groups first: without root they could not be changed any more.
        set_thread_groups(&[])
            .and_then(|()| set_thread_res_gid(gid, gid, gid))
            .and_then(|()| set_thread_res_uid(uid, uid, uid))
            .map_err(|error| SandboxError::BecomeUser {
                name: self.name.clone(),
                source: io::Error::from(error),
            })
    }
}

/// Name of the user that this process is, or its number.
pub(super) fn current_name() -> String {
    let uid = geteuid().as_raw();
    let passwd = std::fs::read_to_string(PASSWD).unwrap_or_default();
    find_entry(&passwd, |user| user.uid == uid).map_or_else(|| uid.to_string(), |user| user.name)
}

/// First entry of a passwd(5) file for which `is_wanted` holds. Lines that are damaged are passed over.
fn find_entry(passwd: &str, is_wanted: impl Fn(&User) -> bool) -> Option<User> {
    passwd.lines().filter_map(parse_entry).find(is_wanted)
}

/// `name:password:uid:gid:…`
fn parse_entry(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let mut number = |skipped| fields.nth(skipped)?.parse().ok().filter(|&id: &u32| id <= ID_MAX);
    let uid = number(1)?;
    let gid = number(0)?;
    Some(User { name: name.to_owned(), uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_passwd_are_found() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n#old:x:7:7::/:\n\nbroken:x:seven:7\nshort:x:5\n\
                      all:x:4294967295:1::/:\nmemtap:x:990:989:a:b:/usr/sbin/nologin\nlast:x:12:13";
        let user = |name: &str, uid, gid| User { name: name.to_owned(), uid, gid };
        let by_name = |name: &str| find_entry(passwd, |user| user.name == name);
        assert_eq!(by_name("root"), Some(user("root", 0, 0)));
        assert_eq!(by_name("memtap"), Some(user("memtap", 990, 989)));
        assert_eq!(by_name("last"), Some(user("last", 12, 13)));
        for damaged in ["broken", "short", "all", "#old", "old", ""] {
            assert_eq!(by_name(damaged), None, "{damaged}");
        }
        assert_eq!(
            find_entry(passwd, |user| user.uid == 990).map(|user| user.name),
            Some("memtap".to_owned())
        );
    }

    #[test]
    fn users_are_found_by_number_too() {
        assert_eq!(User::find("0").unwrap().name, "root");
        let nobody_has_it = User::find("3999999999").unwrap();
        assert_eq!((nobody_has_it.uid, nobody_has_it.gid), (3_999_999_999, 3_999_999_999));
        for unknown in ["", "no-such-user", "4294967295", "-1"] {
            assert!(matches!(User::find(unknown), Err(SandboxError::UnknownUser { .. })), "{unknown}");
        }
    }
}
