"""A service manager, as far as an agent can tell: NOTIFY_SOCKET, WATCHDOG_USEC, a descriptor store, LISTEN_FDS.

Usage: manager.py NOTIFY_SOCKET ROOM WATCHDOG_USEC PROGRAM ARGUMENT...

Reads orders from standard input, one a line: `start`, `term`, `kill`, `names`, `quit`. Says what happens on standard
output, one event a line: `started PID`, `ended CODE`, `note WORDS` (the agent's own words), `names NAME...`.
Like systemd it closes a kept descriptor when it shows a hang-up, and keeps none twice.
"""

import array
import os
import select
import signal
import socket
import sys

PATH, ROOM, WATCHDOG, COMMAND = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]


def say(*words):
    print(*words, flush=True)


def same(a, b):
    one, two = os.fstat(a), os.fstat(b)
    return (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)


class Manager:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(PATH)
        os.chmod(PATH, 0o777)
        self.kept = []
        self.pid = None
        self.input = b""

    def start(self):
        self.drop_hung_up()
        # High numbers first, so that no move below overwrites one that is still to be moved.
        high = [(name, os.dup(descriptor)) for name, descriptor in self.kept]
        self.pid = os.fork()
        if self.pid:
            for _, descriptor in high:
                os.close(descriptor)
            say("started", self.pid)
            return
        os.set_inheritable(0, True)
        moved = [os.dup(descriptor) for _, descriptor in high]
        spare = 3 + len(moved)
        lifted = []
        for descriptor in moved:
            # Above the numbers that are about to be filled.
            while descriptor < spare:
                descriptor = os.dup(descriptor)
            lifted.append(descriptor)
        for at, descriptor in enumerate(lifted):
            os.dup2(descriptor, 3 + at, inheritable=True)
        environment = dict(os.environ, NOTIFY_SOCKET=PATH, FDSTORE=str(ROOM))
        environment.pop("LISTEN_FDS", None)
        if WATCHDOG != "0":
            environment.update(WATCHDOG_USEC=WATCHDOG, WATCHDOG_PID=str(os.getpid()))
        if self.kept:
            names = ":".join(name for name, _ in self.kept)
            environment.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(self.kept)), LISTEN_FDNAMES=names)
        os.execve(COMMAND[0], COMMAND, environment)

    def drop_hung_up(self):
        poll = select.poll()
        for _, descriptor in self.kept:
            poll.register(descriptor, 0)
        gone = {descriptor for descriptor, _ in poll.poll(0)}
        for _, descriptor in self.kept:
            if descriptor in gone:
                os.close(descriptor)
        self.kept = [(name, descriptor) for name, descriptor in self.kept if descriptor not in gone]

    def hear(self):
        numbers = array.array("i")
        text, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(253 * numbers.itemsize))
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
        fields = dict(line.split("=", 1) for line in text.decode().splitlines() if "=" in line)
        name = fields.get("FDNAME", "stored")
        for descriptor in numbers:
            if fields.get("FDSTORE") != "1" or len(self.kept) >= ROOM or any(same(k, descriptor) for _, k in self.kept):
                os.close(descriptor)
            else:
                self.kept.append((name, descriptor))
        if fields.get("FDSTOREREMOVE") == "1":
            for own, descriptor in self.kept:
                if own == name:
                    os.close(descriptor)
            self.kept = [(own, descriptor) for own, descriptor in self.kept if own != name]
        say("note", " ".join(text.decode().split()))

    def obey(self, order):
        if order == "start":
            self.start()
        elif order in ("term", "kill"):
            os.kill(self.pid, signal.SIGTERM if order == "term" else signal.SIGKILL)
        elif order == "names":
            self.drop_hung_up()
            say("names", *sorted(name for name, _ in self.kept))
        elif order == "quit":
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
            sys.exit(0)

    def reap(self):
        if self.pid:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = None
                say("ended", os.waitstatus_to_exitcode(status))

    def run(self):
        wake, alarm = os.pipe()
        os.set_blocking(alarm, False)
        signal.set_wakeup_fd(alarm)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            ready, _, _ = select.select([0, wake, self.socket], [], [])
            if self.socket in ready:
                self.hear()
                continue
            if wake in ready:
                os.read(wake, 512)
                self.reap()
            if 0 in ready:
                data = os.read(0, 4096)
                if not data:
                    self.obey("quit")
                self.input += data
                *orders, self.input = self.input.split(b"\n")
                for order in orders:
                    self.obey(order.decode())


Manager().run()
