// SPDX-License-Identifier: Apache-2.0
//! Which system calls a namespace sandbox may make of this machine's kernel.
//!
//! Two filters. The first lists what programs need; all else does not exist (ENOSYS, so that a
//! program which tries something new falls back). The second names what must look forbidden
//! rather than missing (EPERM). Where both refuse, the kernel takes the answer of the one that
//! was installed last. `clone3` is missing on purpose: its flags are in memory, where a filter
//! cannot see a user namespace being asked for; C libraries fall back to `clone`.

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde_json::{Value, json};

/// `CLONE_NEW*` of clone(2): a process without new namespaces has none of these bits.
const NEW_NAMESPACES: u64 = 0x7e02_0080;
/// Address families that stay inside: unix, IPv4, IPv6, netlink (interface lists). Not among
/// them: vsock, which no network namespace holds back, and the kernel's crypto.
const FAMILIES: [u64; 4] = [1, 2, 10, 16];
/// Terminal requests that type into another's terminal: TIOCSTI, TIOCLINUX.
const TYPING: [u64; 2] = [0x5412, 0x541c];
/// Execution domains: Linux, and the same without address randomisation; and the question.
const PERSONALITIES: [u64; 3] = [0, 0x0004_0000, 0xffff_ffff];

/// ENOSYS and EPERM.
const NOT_THERE: u32 = 38;
const NOT_PERMITTED: u32 = 1;

/// Calls without conditions. Grouped by subject, one group a line.
const ALLOWED: &str = "
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile splice tee vmsplice copy_file_range
open openat openat2 creat close close_range dup dup2 dup3 fcntl flock pipe pipe2 memfd_create
stat fstat lstat newfstatat statx access faccessat faccessat2 statfs fstatfs readlink readlinkat getdents getdents64
mkdir mkdirat mknod mknodat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat futimesat truncate ftruncate fallocate umask
getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
sync fsync fdatasync syncfs sync_file_range fadvise64 readahead cachestat chdir fchdir getcwd
inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
mmap munmap mremap mprotect madvise msync mincore mlock mlock2 munlock mlockall munlockall brk membarrier pkey_alloc pkey_free pkey_mprotect map_shadow_stack
fork vfork execve execveat exit exit_group wait4 waitid set_tid_address set_robust_list get_robust_list rseq arch_prctl prctl
getpid getppid gettid getpgid getpgrp setpgid getsid setsid getuid geteuid getgid getegid getgroups getresuid getresgid
setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capget capset
kill tkill tgkill pidfd_open pidfd_send_signal rt_sigaction rt_sigprocmask rt_sigpending rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo sigaltstack signalfd signalfd4 restart_syscall pause alarm
futex futex_waitv futex_wait futex_wake futex_requeue nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getitimer setitimer
timer_create timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime
select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2
bind connect listen accept accept4 getsockname getpeername getsockopt setsockopt shutdown sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg socketpair
shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler sched_setscheduler sched_getattr sched_setattr sched_get_priority_max sched_get_priority_min sched_rr_get_interval
getpriority setpriority ioprio_get ioprio_set getcpu getrlimit setrlimit prlimit64 getrusage sysinfo uname getrandom
io_setup io_submit io_getevents io_pgetevents io_cancel io_destroy
landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp
";

/// What must look forbidden.
const FORBIDDEN: &str = "
mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr swapon swapoff
unshare setns ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise
keyctl add_key request_key bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
kexec_load kexec_file_load init_module finit_module delete_module reboot syslog acct quotactl quotactl_fd
settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname iopl ioperm
name_to_handle_at open_by_handle_at fanotify_init fanotify_mark lookup_dcookie nfsservctl vhangup
";

/// The tables above do not compile; only a mistake in this file can cause it.
#[derive(Debug, thiserror::Error)]
#[error("the system call filters are wrong; this is our mistake, please report it")]
pub struct SeccompError(#[from] seccompiler::Error);

/// The filters in the order in which they must be installed, as the kernel reads them.
///
/// # Errors
/// [`SeccompError`]; or this processor is none that there is a table for.
pub fn programs() -> Result<[Vec<u8>; 2], SeccompError> {
    let architecture = std::env::consts::ARCH.try_into().map_err(seccompiler::Error::Backend)?;
    let allowed = json!({ "filter": {
        "mismatch_action": { "errno": NOT_THERE }, "match_action": "allow", "filter": allowed_rules(),
    } });
    let allowed = compile(&allowed, architecture)?;
    let forbidden: Vec<Value> = names(FORBIDDEN).map(always).collect();
    let forbidden = json!({ "filter": {
        "mismatch_action": "allow", "match_action": { "errno": NOT_PERMITTED }, "filter": forbidden,
    } });
    let forbidden = compile(&forbidden, architecture)?;
    Ok([bytes(&allowed), bytes(&forbidden)])
}

/// The same prohibitions for gVisor's own kernel, in the OCI's words. What is allowed there is
/// gVisor's affair: it has few calls, and none of them is this machine's. `clone3` is left to
/// `sandboxd`: here it could only be forbidden (`errnoRet` is not heeded), and then C libraries
/// start no thread.
#[must_use]
pub fn oci() -> Value {
    let refused =
        |names: Value| json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": NOT_PERMITTED });
    // gVisor has no such call to name; its kernel refuses it by itself.
    let known = |name: &&str| !matches!(*name, "quotactl_fd" | "process_madvise" | "mount_setattr");
    let forbidden: Vec<&str> = names(FORBIDDEN).filter(known).collect();
    let new_namespaces: Vec<Value> = (0..u64::BITS)
        .map(|bit| 1_u64 << bit)
        .filter(|bit| NEW_NAMESPACES & bit != 0)
        .map(|bit| {
            json!({ "names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": NOT_PERMITTED,
                    "args": [{ "index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ" }] })
        })
        .collect();
    let mut rules = vec![refused(json!(forbidden))];
    rules.extend(new_namespaces);
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules })
}

fn allowed_rules() -> Vec<Value> {
    let mut rules: Vec<Value> = names(ALLOWED).map(always).collect();
    rules.push(when(
        "clone",
        &[json!({ "index": 0, "type": "qword", "op": { "masked_eq": NEW_NAMESPACES }, "val": 0 })],
    ));
    rules.extend(FAMILIES.map(|family| when("socket", &[argument(0, "eq", family)])));
    rules.push(when("ioctl", &TYPING.map(|request| argument(1, "ne", request))));
    rules.extend(PERSONALITIES.map(|domain| when("personality", &[argument(0, "eq", domain)])));
    rules
}

fn names(list: &'static str) -> impl Iterator<Item = &'static str> {
    list.split_whitespace().filter(|name| exists(name))
}

/// Calls of older processors' tables that newer ones were never given.
fn exists(name: &str) -> bool {
    const ONLY_X86: &str = "
    open creat dup2 pipe stat lstat access readlink getdents mkdir mknod rmdir unlink rename link symlink chmod chown lchown
    utime utimes futimesat inotify_init fork vfork arch_prctl getpgrp signalfd pause alarm time select poll epoll_create
    epoll_ctl_old epoll_wait epoll_wait_old eventfd iopl ioperm map_shadow_stack";
    cfg!(target_arch = "x86_64") || !ONLY_X86.split_whitespace().any(|only| only == name)
}

fn always(name: &str) -> Value {
    json!({ "syscall": name })
}

fn when(name: &str, arguments: &[Value]) -> Value {
    json!({ "syscall": name, "args": arguments })
}

/// Compares 32 bits: the kernel ignores the upper half of these arguments, so must we.
fn argument(index: u8, operator: &str, value: u64) -> Value {
    json!({ "index": index, "type": "dword", "op": operator, "val": value })
}

fn compile(filter: &Value, architecture: TargetArch) -> Result<BpfProgram, seccompiler::Error> {
    let mut programs = compile_from_json(filter.to_string().as_bytes(), architecture)?;
    Ok(programs.remove("filter").unwrap_or_default())
}

/// `struct sock_filter` of linux/filter.h, in this machine's byte order.
fn bytes(program: &BpfProgram) -> Vec<u8> {
    let one = |step: &seccompiler::sock_filter| {
        let [code0, code1] = step.code.to_ne_bytes();
        let [k0, k1, k2, k3] = step.k.to_ne_bytes();
        [code0, code1, step.jt, step.jf, k0, k1, k2, k3]
    };
    program.iter().flat_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_filters_compile_within_the_kernels_bound_of_4096_steps() {
        for program in programs().expect("compiles") {
            assert_eq!(program.len() % 8, 0);
            assert!((8..=4096 * 8).contains(&program.len()), "{}", program.len());
        }
    }

    #[test]
    fn nothing_is_both_allowed_and_forbidden() {
        let allowed: Vec<_> = names(ALLOWED).collect();
        assert_eq!(names(FORBIDDEN).find(|name| allowed.contains(name)), None);
    }
}
