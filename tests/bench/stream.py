"""The host's end of streams from and to a guest: measures each from the connection to its end.

stream.py ADDRESS NAME PROCESS MIB    PROCESS is a file that holds the ID of the machine's process

Port 9001 takes what comes, port 9002 gives MIB MiB. A line for each: `NAME-to-host MICROSECONDS PROCESSOR MIB`, where
PROCESSOR is what the machine's process used of the processor meanwhile, in microseconds.
"""

import os
import select
import socket
import sys
import time

address, name, process, mib = sys.argv[1:]
CHUNK = bytes(1 << 20)


def used():
    with open(process) as file:
        pid = file.read().strip()
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1_000_000 // os.sysconf("SC_CLK_TCK")


def measure(what, connection, move):
    before, start = used(), time.monotonic_ns()
    count = move(connection)
    # Until the other end has all of it.
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(1):
        pass
    elapsed = (time.monotonic_ns() - start) // 1000
    connection.close()
    print(f"{name}-{what} {elapsed} {used() - before} {count / (1 << 20):.0f}", flush=True)


def take(connection):
    buffer, count = bytearray(1 << 20), 0
    while received := connection.recv_into(buffer):
        count += received
    return count


def give(connection):
    for _ in range(int(mib)):
        connection.sendall(CHUNK)
    return int(mib) << 20


sink, source = (socket.create_server((address, port)) for port in (9001, 9002))
while True:
    for listener in select.select([sink, source], [], [])[0]:
        connection, _ = listener.accept()
        if listener is sink:
            measure("to-host", connection, take)
        else:
            measure("from-host", connection, give)
