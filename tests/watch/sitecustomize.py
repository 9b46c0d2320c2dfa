"""Python runs this file when a process starts with this folder on its path (see ``bench_world.py``).

Every address that the process connects to and every program that it starts is written to the file that
``MOON_TEST_WATCH`` names, a JSON list a line. Children inherit both variables, so that nothing goes unseen.
"""

import json
import os
import sys


def _write(event, arguments):
    path = os.environ.get("MOON_TEST_WATCH")
    if not path or event not in ("socket.connect", "subprocess.Popen"):
        return
    said = arguments[1]
    if event == "socket.connect" and not isinstance(said, tuple):
        return  # a socket of this machine's file system, between a process and its child
    with open(path, "a") as out:
        out.write(json.dumps([event, *map(str, said)]) + "\n")


sys.addaudithook(_write)
