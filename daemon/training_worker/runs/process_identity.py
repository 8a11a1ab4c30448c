"""The identity of a process: proof that a process id still means the process that once had it."""

import contextlib
import errno
import os
import signal
from pathlib import Path

import msgspec

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# The fields of /proc/<pid>/stat, counted from the one after the name in parentheses; see proc(5).
SESSION_FIELD = 3
START_TIME_FIELD = 19

# The id is unused, or by now that of a thread: which of the last two is raised depends on the kernel.
NO_PROCESS = {errno.ESRCH, errno.EINVAL, errno.ENOENT}

# In the environment of a trainer and of all that it starts.
MARK_VARIABLE = "TRAINING_TRAINER"

# Written by the process itself before it becomes the trainer: no crash of the daemon can fall between the two.
RECORD_SELF = (
    f'mark() {{ shift {START_TIME_FIELD}; export {MARK_VARIABLE}="$boot/$$/$1"; }} && '
    "read -r boot < /proc/sys/kernel/random/boot_id && read -r stat < /proc/$$/stat && mark ${stat##*) } && "
    # Shells add variables of their own.
    'printf "%s\\n%s\\n" "$boot" "$stat" > "$1" && shift && unset PWD OLDPWD SHLVL && exec "$@"'
)


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The identity of a process: its id, when it started (clock ticks after the boot), and which boot that was."""

    boot_id: str
    pid: int
    start_time: int

    @classmethod
    def read(cls, path: Path) -> "ProcessIdentity | None":
        """Read the identity that a process wrote; None if it never did."""
        try:
            boot_id, stat = path.read_text("utf-8", "replace").splitlines()
            fields = _fields(stat)
            return cls(boot_id=boot_id, pid=int(stat.split()[0]), start_time=int(fields[START_TIME_FIELD]))
        except (OSError, ValueError, IndexError):
            return None

    def open(self) -> int | None:
        """Open a file descriptor of the very process, if it still runs; see pidfd_open(2)."""
        if not self.same_boot:
            return None
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            if error.errno in NO_PROCESS:
                return None
            raise
        # The descriptor first: what is read now is about the process that it refers to, or that process has ended.
        fields = _fields_of(self.pid)
        if fields is not None and int(fields[START_TIME_FIELD]) == self.start_time:
            return pidfd
        os.close(pidfd)
        return None

    @property
    def same_boot(self) -> bool:
        """Whether the host has not been rebooted since."""
        return BOOT_ID.read_text().strip() == self.boot_id

    @property
    def is_alive(self) -> bool:
        """Whether the very process still runs."""
        pidfd = self.open()
        if pidfd is not None:
            os.close(pidfd)
        return pidfd is not None

    @property
    def mark(self) -> str:
        """The variable in the environment of the process and of all that it starts."""
        return f"{MARK_VARIABLE}={self.boot_id}/{self.pid}/{self.start_time}"

    def kill_leftovers(self) -> None:
        """Kill what is left of the process's session.

        Without the mark, another program that later got the same process id could be hit.
        """
        if not self.same_boot:
            return
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self._is_leftover(entry):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(entry.name), signal.SIGKILL)

    def _is_leftover(self, process: Path) -> bool:
        fields = _fields_of(int(process.name))
        if fields is None or int(fields[SESSION_FIELD]) != self.pid:
            return False
        try:
            return self.mark.encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


def _fields_of(pid: int) -> list[str] | None:
    try:
        return _fields(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace"))
    except OSError:
        return None


def _fields(stat: str) -> list[str]:
    return stat.rpartition(")")[2].split()
