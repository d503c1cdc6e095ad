"""Commands as processes of their own: how long they took, how much memory, what they said and when."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time


# Whoever ends us ends what we started.
for end in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(end, lambda number, _: sys.exit(128 + number))


@dataclasses.dataclass
class Ended:
    seconds: float
    processor_seconds: float
    # The peak of what the system counts, mapped files included, and of what is the process's own (None: not known).
    mib: float
    own_mib: float | None
    # Each JSON object of standard output, with the seconds since the start at which it came.
    said: list
    # The time was up.
    cut: bool
    code: int
    complaint: str


def ended(command, environment, limit, enough=lambda said: False):
    """Runs the command until it ends, has said enough, or the limit is reached, and everything it started with it."""
    command = [str(word) for word in command]
    with tempfile.TemporaryFile("w+") as complaints:
        start, said, cut = time.perf_counter(), [], threading.Event()
        child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=complaints, text=True, start_new_session=True)

        def stop():
            cut.set()
            kill(child.pid)

        timer, own = threading.Timer(limit, stop), Own(child.pid)
        timer.start()
        own.start()
        try:
            for line in child.stdout:
                # A line may be cut off with its process.
                if line.startswith("{") and line.endswith("}\n"):
                    said.append((time.perf_counter() - start, json.loads(line)))
                    if enough(said):
                        kill(child.pid)
                        break
            # Of this child alone: its peak of memory, its processor's time.
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            kill(child.pid)
            raise
        finally:
            timer.cancel()
            own.done.set()
            child.stdout.close()
        seconds = time.perf_counter() - start
        complaints.seek(0)
        complaint = complaints.read()[-2000:]
    size = 1 if sys.platform == "darwin" else 1024
    return Ended(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * size / 2**20,
                 own.mib, said, cut.is_set(), child.returncode, complaint)


class Own(threading.Thread):
    """Looks ten times a second how much memory a process has that is not mapped from a file; Linux tells."""

    def __init__(self, process):
        super().__init__(daemon=True)
        self.path, self.done, self.mib = f"/proc/{process}/status", threading.Event(), None

    def run(self):
        while not self.done.wait(0.1):
            try:
                with open(self.path) as status:
                    kib = next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))
            except (OSError, StopIteration):
                return
            self.mib = max(self.mib or 0, kib / 1024)


def kill(group):
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


class Busy:
    """Another job on every core, as long as it is entered: a loop that ends with us."""

    LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"

    def __init__(self, jobs):
        self.jobs, self.children = jobs, []

    def __enter__(self):
        self.children = [subprocess.Popen([sys.executable, "-c", self.LOOP], start_new_session=True)
                         for _ in range(self.jobs)]
        return self

    def __exit__(self, *_):
        for child in self.children:
            child.kill()
            child.wait()


def cached(path):
    """Reads the files once, so that the first side does not wait for the disk on behalf of all."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        with open(file, "rb", buffering=0) as bytes_:
            while bytes_.read(1 << 24):
                pass
