"""What tests call in a process of its own: a file that imports little, as the process imports it."""

import os
import socket


def answers(value):
    return lambda: value + 1


def dies():
    return lambda: os._exit(7)


def connects(port):
    return lambda: socket.socket().connect_ex(("127.0.0.1", port))
