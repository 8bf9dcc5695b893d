//! System calls that `rustix` does not wrap, as safe functions. All `unsafe` code of the agent is in
//! this file.
//!
//! What makes most of it sound: the agent never starts a thread.
#![allow(unsafe_code, reason = "the one place for it; denied everywhere else")]

use std::{
    arch::asm,
    ffi::{CString, c_char, c_int, c_long},
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use libc::{clone_args, pid_t, sigset_t, sockaddr_vm, socklen_t};

/// `CLONE_INTO_CGROUP` of linux/sched.h; `libc` cuts it to 32 bits.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// On which side of [`fork`] the caller finds itself.
pub enum Forked {
    /// In the new process.
    Child,
    /// In the old one.
    Parent {
        /// Of the child, as the parent sees it.
        pid: pid_t,
        /// Becomes readable when the child ends.
        pidfd: OwnedFd,
    },
}

/// `fork(2)`, into new namespaces (`CLONE_NEW*`) and another control group (clone3(2)).
///
/// # Errors
///
/// Those of clone3.
pub fn fork(namespaces: c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    let flags = namespaces | libc::CLONE_PIDFD;
    // SAFETY: clone_args is integers, for which zero is a value.
    let mut args: clone_args = unsafe { mem::zeroed() };
    args.flags = u64::from(flags.cast_unsigned());
    args.pidfd = (&raw mut pidfd).addr() as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: without CLONE_VM the child has its own copy of all memory, and there is no other
    // thread that could have left a lock held in it. The kernel writes only to `pidfd`.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent {
            pid: pid_t::try_from(pid).map_err(io::Error::other)?,
            // SAFETY: the kernel has just put it there, and nobody else owns it.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Moves the process into a new control group namespace, whose root is its present group.
///
/// # Errors
///
/// Those of unshare(2).
pub fn new_cgroup_namespace() -> io::Result<()> {
    // SAFETY: takes no memory and no descriptor from anybody.
    checked(c_long::from(unsafe {
        libc::unshare(libc::CLONE_NEWCGROUP)
    }))
}

/// Strings as `execve(2)` takes them.
pub struct StringArray {
    pointers: Vec<*const c_char>,
    // What the pointers point to: heap memory that stays where it is when the vector grows.
    strings: Vec<CString>,
}

impl StringArray {
    /// # Errors
    ///
    /// `InvalidInput` for a string with a NUL in it.
    pub fn new<'a>(strings: impl IntoIterator<Item = &'a [u8]>) -> io::Result<Self> {
        let strings = strings
            .into_iter()
            .map(CString::new)
            .collect::<Result<Vec<_>, _>>()?;
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect();
        Ok(Self { pointers, strings })
    }

    /// The strings themselves.
    pub fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// `execve(2)`; returns only when it failed.
pub fn execve(path: &CString, args: &StringArray, env: &StringArray) -> io::Error {
    // SAFETY: a string and two arrays of strings, all NUL-terminated and alive.
    unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Closes every descriptor from `first` on at the next `execve`.
///
/// # Errors
///
/// Those of close_range(2).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from `first` on. For a process that goes on with those before it alone.
///
/// # Errors
///
/// Those of close_range(2).
pub fn close_from(first: u32) -> io::Result<()> {
    close_range(first, 0)
}

/// Closes every descriptor. For a process that goes on without any.
///
/// # Errors
///
/// Those of close_range(2).
pub fn close_all() -> io::Result<()> {
    close_range(0, 0)
}

fn close_range(first: u32, flags: u32) -> io::Result<()> {
    // SAFETY: touches no memory. Whoever closes at once owns descriptors that it never uses again.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) })
}

/// `PIDFD_SIGNAL_PROCESS_GROUP` of pidfd_send_signal(2), since Linux 6.9.
const TO_THE_GROUP: libc::c_uint = 1 << 2;

/// Sends any signal, the realtime ones included, to a process that leads a group. One that is killed takes its group
/// with it, which it could not end any more.
///
/// # Errors
///
/// Those of pidfd_send_signal(2).
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: u8) -> io::Result<()> {
    let info = ptr::null::<libc::siginfo_t>();
    let flags = match c_int::from(signal) {
        libc::SIGKILL => TO_THE_GROUP,
        _ => 0,
    };
    // SAFETY: no signal information is passed.
    checked(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            c_int::from(signal),
            info,
            flags,
        )
    })
}

/// Gives `SIGPIPE` its default action back, which Rust's start-up code took.
pub fn restore_sigpipe() {
    // SAFETY: installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Blocks every signal that can be blocked.
pub fn block_signals() {
    set_signal_mask(&all_signals());
}

/// Blocks no signal.
pub fn unblock_signals() {
    // SAFETY: a sigset_t is integers, for which zero is a value: the empty set.
    set_signal_mask(&unsafe { mem::zeroed() });
}

/// Takes the next of the blocked signals and waits for it if need be.
///
/// # Errors
///
/// `EINTR` where the wait was interrupted.
pub fn next_signal() -> io::Result<c_int> {
    let all = all_signals();
    // SAFETY: reads `all`, and is not asked for details.
    match unsafe { libc::sigwaitinfo(&raw const all, ptr::null_mut()) } {
        -1 => Err(io::Error::last_os_error()),
        signal => Ok(signal),
    }
}

/// `kill(2)` with any signal.
///
/// # Errors
///
/// Those of kill.
pub fn kill(pid: pid_t, signal: c_int) -> io::Result<()> {
    // SAFETY: touches no memory.
    checked(c_long::from(unsafe { libc::kill(pid, signal) }))
}

fn all_signals() -> sigset_t {
    // SAFETY: as in `unblock_signals`.
    let mut all = unsafe { mem::zeroed() };
    // SAFETY: writes the set it is given.
    unsafe { libc::sigfillset(&raw mut all) };
    all
}

fn set_signal_mask(mask: &sigset_t) {
    // SAFETY: reads `mask`. No handler exists that could run.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, ptr::from_ref(mask), ptr::null_mut()) };
}

/// `SO_VM_SOCKETS_CONNECT_TIMEOUT` of linux/vm_sockets.h.
const CONNECT_TIMEOUT: c_int = 6;

/// How long the host may take to answer, in seconds. The kernel's two are little for a host that is busy. But a socket that
/// does not block is kept in memory for that time, whenever it is closed: more is not for nothing.
const PATIENCE: libc::time_t = 20;

/// `connect(2)` of a vsock socket to the host.
///
/// # Errors
///
/// Those of connect; `EINPROGRESS` for a socket that does not block.
pub fn connect_to_host(socket: BorrowedFd<'_>, port: u32) -> io::Result<()> {
    let patience = libc::timeval {
        tv_sec: PATIENCE,
        tv_usec: 0,
    };
    // SAFETY: reads `patience`, whose size is told.
    checked(c_long::from(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            CONNECT_TIMEOUT,
            (&raw const patience).cast(),
            size_of::<libc::timeval>() as socklen_t,
        )
    }))?;
    // SAFETY: sockaddr_vm is integers, for which zero is a value.
    let mut address: sockaddr_vm = unsafe { mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_HOST;
    address.svm_port = port;
    // SAFETY: reads `address`, whose size is told.
    checked(c_long::from(unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<sockaddr_vm>() as socklen_t,
        )
    }))
}

/// Writes one byte to an I/O port.
///
/// # Errors
///
/// Those of ioperm(2).
pub fn write_port(port: u16, value: u8) -> io::Result<()> {
    // SAFETY: touches no memory.
    checked(c_long::from(unsafe { libc::ioperm(port.into(), 1, 1) }))?;
    // SAFETY: access to the port was granted, and what the machine does with it is the purpose.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
    Ok(())
}

fn checked(result: c_long) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
