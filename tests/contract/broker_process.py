"""A process that uses a shared broker as its standard input says.

``python -m``, backend, place, lease seconds. Each line is a command, and each answer is one line of
JSON, written once the broker has answered. ``Peer`` is the other side of it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

from gwi_celery.brokers.base import Broker, OutgoingMessage, QueueSpec
from gwi_celery.errors import BrokerError
from tests import zygote
from tests.contract.brokers import PATIENCE, SHARED, readable, send, wait_for


class Peer:
    """One such process."""

    def __init__(self, backend: str, place: str, lease_seconds: float) -> None:
        self._process = zygote.start(__name__, [backend, place, str(lease_seconds)], talks=True)

    def tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """The next line, waited for; fails once the process has ended."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(3 * PATIENCE, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        assert line, f"the process ended with {self._process.wait()}"
        return json.loads(line)

    def ask(self, *words: object) -> Any:
        self.tell(*words)
        return self.answer()

    def kill(self) -> None:
        """At once, as the kernel does it to one that takes too much memory."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process.stdout.close()


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def publish(broker: Broker, name: str, count: str) -> None:
    """Publish that many messages, each with a body of its own."""
    for number in range(int(count)):
        send(broker, f"{name}/{number}".encode())
    say("published")


def hold(broker: Broker, count: str) -> None:
    """Lease that many messages and keep them."""
    say([delivery.data.decode() for delivery in broker.receiver().poll("q", int(count))])


def consume(broker: Broker) -> None:
    """Take and ack until told to end by a message; say what was acked."""
    receiver = broker.receiver()
    receiver.subscribe("q")
    acked = []
    while (delivery := wait_for(receiver)).data != b"end":
        # The one who acks under a lease it still has is the one whose ack counts.
        if not broker.extend([delivery], delivery.lease_seconds):
            broker.ack([delivery])
            acked.append(delivery.data.decode())
    broker.ack([delivery])
    receiver.close()
    say(acked)


def listen(broker: Broker, *queues: str) -> None:
    """Subscribe, and keep the receiver to the end."""
    receiver = broker.receiver()
    for queue in queues:
        receiver.subscribe(queue)
    receiver.clear()
    _kept.append(receiver)
    say("listening")


def wake(broker: Broker) -> None:
    """Wait until the last receiver is woken."""
    woken = readable(_kept[-1])
    _kept[-1].clear()
    say(woken)


def fork(broker: Broker) -> None:
    """Use one broker object on both sides of a fork, with a receiver and a delivery at hand."""
    broker.declare_queue(QueueSpec("ours", auto_delete=True))
    receiver = broker.receiver()
    receiver.subscribe("ours")
    receiver.subscribe("q")
    send(broker, b"held")
    [held] = receiver.poll("q", 1)
    receiver.clear()

    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _in_the_child(broker, receiver)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)

    woken = readable(receiver)
    receiver.clear()
    send(broker, b"for the parent", queue="ours")
    say(
        {
            "child": os.waitstatus_to_exitcode(status),
            "woken by the child": woken,
            "from the child": [d.data.decode() for d in receiver.poll("q", 10)],
            "own lease": broker.extend([held], 60.0) == [],
            "still subscribed": readable(receiver, 1.0),
            "own queue": [d.data.decode() for d in receiver.poll("ours", 10)],
        }
    )


def _in_the_child(broker: Broker, inherited: Any) -> int:
    try:
        inherited.poll("q", 1)
        return 2
    except BrokerError:
        pass
    inherited.close()
    send(broker, b"from the child")
    own = broker.receiver()
    own.subscribe("q")
    if [d.data for d in own.poll("q", 10)] != [b"from the child"]:
        return 3
    [again] = broker.peek("q")[-1:]
    broker.close()
    broker.publish("", "q", OutgoingMessage(b"from the child, opened anew"))
    return 0 if again.state == "leased" else 4


_kept: list[Any] = []
COMMANDS = {f.__name__: f for f in (publish, hold, consume, listen, wake, fork)}


def main(backend: str, place: str, lease_seconds: str) -> None:
    broker = SHARED[backend](place, float(lease_seconds))
    say("ready")
    for line in sys.stdin:
        command, *words = line.split()
        COMMANDS[command](broker, *words)
    broker.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
