"""Calls functions for somebody in another name space: run as a script it is the hand, imported it moves one.

Functions and arguments go in and results come out as pickles, on standard input and output; functions that no
module has travel whole. A hand keeps what a function leaves in it, such as an object in a module's global.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import IO, Any, ParamSpec, TypeVar

import cloudpickle

P = ParamSpec("P")
R = TypeVar("R")


def _send(stream: IO[bytes], message: Any) -> None:
    data = cloudpickle.dumps(message)
    stream.write(struct.pack("!Q", len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    return pickle.loads(stream.read(struct.unpack("!Q", head)[0]))


class Hand:
    """A Python process somewhere else, that does one thing at a time.

    Parameters
    ----------
    prefix : sequence of str
        Beginning of a command that runs the rest of it there.
    environment : dict of str to str
    """

    def __init__(self, prefix: tuple[str, ...], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function there.

        Raises
        ------
        Exception
            What the function raises.
        EOFError
            If the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, (function, args, kwargs))
        except BrokenPipeError:
            raise EOFError from None
        good, answer = _receive(self._process.stdout)
        if not good:
            raise answer
        result: R = answer
        return result

    @property
    def lives(self) -> bool:
        """Whether it can still be called."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill it outright. What it started is left to itself."""
        self._process.kill()
        self._process.wait()
        self.close()

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def main() -> None:
    """Do what is asked, until standard input closes."""
    # What a function prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            function, args, kwargs = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = True, function(*args, **kwargs)
        except Exception as error:
            answer = False, error
        _send(answers, answer)


if __name__ == "__main__":
    main()
