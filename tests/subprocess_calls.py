"""Calls that tests run in a subprocess, in a file that imports little because the subprocess imports it."""

import os
import socket


def answers(value):
    return lambda: value + 1


def dies():
    return lambda: os._exit(7)


def connects(port):
    return lambda: socket.socket().connect_ex(("127.0.0.1", port))
