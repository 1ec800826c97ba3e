"""One client over HTTP in many threads, and in a process that forks."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from embedkeep import Client
from support.fake_node import FakeNode, running, vector_of

WAIT_S = 30.0


def test_threads_share_a_client_and_never_an_answer() -> None:
    with running(FakeNode()) as (place,), Client(place.http, timeout_s=WAIT_S) as client:

        def ask(caller: int) -> None:
            for number in range(50):
                text = f"{caller} {number}"
                np.testing.assert_array_equal(client.embed([text])[0], vector_of(text))

        with ThreadPoolExecutor(16) as threads:
            assert list(threads.map(ask, range(16))) == [None] * 16


FORKING = """
import os, sys
from embedkeep import Client

def open_sockets():
    links = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]
    return sum(os.readlink(each).startswith("socket:") for each in links if os.path.exists(each))

before_all = open_sockets()
client = Client(sys.argv[1], timeout_s=30)
client.embed([str(number) for number in range(1000)])  # several requests at once, in threads
before = client.embed(["a"]).tobytes()
if (child := os.fork()) == 0:
    if open_sockets() != before_all:
        os._exit(2)  # the parent's are open here
    client.embed([str(number) for number in range(1000)])
    same = [client.embed(["a"]).tobytes() == before for _ in range(50)]
    os._exit(0 if all(same) else 1)
same = [client.embed(["a"]).tobytes() == before for _ in range(50)]
_, status = os.waitpid(child, 0)
sys.exit(0 if all(same) and os.waitstatus_to_exitcode(status) == 0 else 1)
"""


def test_a_child_does_not_share_its_parents_connections() -> None:
    with running(FakeNode()) as (place,):
        done = subprocess.run(
            [sys.executable, "-c", FORKING, place.http],
            timeout=WAIT_S,
            check=False,
            capture_output=True,
            text=True,
        )

    assert (done.returncode, done.stderr) == (0, "")
