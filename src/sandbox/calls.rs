//! Which system calls stay permitted: the list below, by a seccomp filter on every thread; all others fail with `EPERM`.
//!
//! The list is what workers, the reporter, a listener that is open already, the standard library, the allocator and logging
//! call once everything is open. Whoever misses a call here finds it with `strace -f -e status=failed`; it is to be added with
//! the narrowest arguments that do.

use std::collections::BTreeMap;

use libc::c_int;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::SandboxError;

/// Permitted whatever their arguments.
const CALLS: &[i64] = &[
    // What is open: reports, log, packets, answers of the kernel, clients of a listener. A descriptor is the permission.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_close,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_ppoll,
    // The ring: statistics, its interface. Options are set further below.
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    // Only packet and netlink sockets are unbound; Landlock forbids listening on TCP.
    libc::SYS_bind,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Time.
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    // Threads.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Refused by the other filter.
    libc::SYS_clone3,
    // Signals to ourselves.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Seeds of hashes.
    libc::SYS_getrandom,
    // Calls that newer architectures do without.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// Permitted besides when files may be opened; Landlock says which.
const CALLS_ON_FILES: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
];

/// Permitted besides when files may be written.
const CALLS_ON_WRITABLE_FILES: &[i64] = &[
    libc::SYS_ftruncate,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    #[cfg(not(target_arch = "riscv64"))]
    libc::SYS_renameat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// Questions to a terminal (its width, whether it is one) and to an interface (its name, number and state).
const IOCTLS: [u32; 5] = [
    // The casts because the type depends on the C library; the kernel's is 32 bits wide.
    libc::TIOCGWINSZ as u32,
    libc::TCGETS as u32,
    libc::SIOCGIFNAME as u32,
    libc::SIOCGIFINDEX as u32,
    libc::SIOCGIFFLAGS as u32,
];

/// A thread shares memory, files and signal handlers with its maker; a process does not.
const THREAD_FLAGS: c_int =
    libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_FILES | libc::CLONE_FS;

/// No thread of ours is born into namespaces of its own or traced.
const FOREIGN_FLAGS: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_PTRACE
    | libc::CLONE_VFORK;

/// Installs the filters on every thread. Says how many calls are permitted, or what is missing.
pub(super) fn enforce(may_read: bool, may_write: bool) -> Result<Result<usize, String>, SandboxError> {
    let Ok(architecture) = TargetArch::try_from(std::env::consts::ARCH) else {
        return Ok(Err(format!("no seccomp filter for {}", std::env::consts::ARCH)));
    };
    let failed = |error: Error| SandboxError::step("seccomp", error);
    let rules = permitted(may_read, may_write).map_err(|error| failed(error.into()))?;
    let calls = rules.len() - 1; // clone3 is not
    let permit = compile(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, architecture);
    // The flags of clone3 lie in memory, where a filter cannot look. The C library goes back to clone when there is none.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let hide = compile(clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), architecture);
    // The stricter answer of the two holds. The list comes last because it does not permit seccomp itself.
    for program in [hide.map_err(failed)?, permit.map_err(failed)?] {
        match seccompiler::apply_filter_all_threads(&program) {
            Ok(()) => {}
            Err(Error::Seccomp(error)) => {
                return Ok(Err(format!("the kernel refuses seccomp filters: {error}")));
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(Ok(calls))
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
    architecture: TargetArch,
) -> Result<BpfProgram, Error> {
    let filter = SeccompFilter::new(rules, otherwise, matched, architecture)?;
    Ok(BpfProgram::try_from(filter)?)
}

/// Calls with their rules, of which one must hold; a call without rules is permitted.
fn permitted(may_read: bool, may_write: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = CALLS.iter().map(|&call| (call, Vec::new())).collect();
    if may_read || may_write {
        rules.extend(CALLS_ON_FILES.iter().map(|&call| (call, Vec::new())));
    }
    if may_write {
        rules.extend(CALLS_ON_WRITABLE_FILES.iter().map(|&call| (call, Vec::new())));
    }
    rules.insert(libc::SYS_ioctl, one_of(1, &IOCTLS.map(u64::from))?);
    let levels = [libc::SOL_SOCKET, libc::SOL_PACKET, libc::SOL_NETLINK, libc::IPPROTO_TCP];
    rules.insert(libc::SYS_setsockopt, one_of(1, &levels.map(bits))?);
    let commands =
        [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC].map(bits);
    rules.insert(libc::SYS_fcntl, one_of(1, &commands)?);
    // Names of threads and of memory areas.
    rules.insert(libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME, libc::PR_SET_VMA].map(bits))?);
    // Aborting signals the own process.
    rules.insert(libc::SYS_tgkill, one_of(0, &[u64::from(std::process::id())])?);
    // No memory that can be run.
    let not_executable = || -> Result<_, BackendError> { Ok(vec![rule([masked(2, libc::PROT_EXEC, 0)?])?]) };
    rules.insert(libc::SYS_mmap, not_executable()?);
    rules.insert(libc::SYS_mprotect, not_executable()?);
    rules.insert(libc::SYS_clone, vec![rule([masked(0, THREAD_FLAGS | FOREIGN_FLAGS, THREAD_FLAGS)?])?]);
    // To the peer of the connection, and to nobody that the caller names.
    let no_address = SeccompCondition::new(4, Length::Qword, Is::Eq, 0)?;
    rules.insert(libc::SYS_sendto, vec![rule([no_address])?]);
    // Questions about interfaces. Without capabilities it can only ask, as anybody may; a socket kept open could do the same.
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let route_netlink = [
        masked(0, !0, libc::AF_NETLINK)?,
        masked(1, !flags, libc::SOCK_RAW)?,
        masked(2, !0, libc::NETLINK_ROUTE)?,
    ];
    rules.insert(libc::SYS_socket, vec![rule(route_netlink)?]);
    Ok(rules)
}

fn rule<const N: usize>(conditions: [SeccompCondition; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.to_vec())
}

/// The low half of an argument is one of the values. (The kernel takes these arguments as 32 bits wide, whatever is above.)
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    values
        .iter()
        .map(|&value| rule([SeccompCondition::new(argument, Length::Dword, Is::Eq, value)?]))
        .collect()
}

fn masked(argument: u8, mask: c_int, value: c_int) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Length::Dword, Is::MaskedEq(bits(mask)), bits(value))
}

/// The pattern of a C integer, without an extended sign.
fn bits(value: c_int) -> u64 {
    u64::from(value.cast_unsigned())
}
