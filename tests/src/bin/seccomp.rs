//! Runs a program under a filter of system calls like the default one of Docker:
//! `thallus-seccomp PROGRAM [ARGUMENT ...]`.
//!
//! These are the calls that Docker's default profile blocks for a container without capabilities, as its documentation
//! lists them (Docker Engine, "Seccomp security profiles for Docker"), `clone3`, which it answers with ENOSYS, and
//! `io_uring`. Calls on other memory (`process_vm_readv`) are blocked too, as by Docker before kernel 4.8.

use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// Calls that fail with EPERM.
const BLOCKED: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// A filter that lets these calls fail with this error, and allows all others.
fn failing(calls: &[i64], errno: i32) -> Result<BpfProgram, Box<dyn Error>> {
    let rules: BTreeMap<_, _> = calls.iter().map(|call| (*call, Vec::new())).collect();
    let action = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().ok_or("usage: thallus-seccomp PROGRAM [ARGUMENT ...]")?;
    apply_filter(&failing(&[libc::SYS_clone3], libc::ENOSYS)?)?;
    apply_filter(&failing(BLOCKED, libc::EPERM)?)?;
    Err(Command::new(program).args(arguments).exec().into())
}
