"""Kombu's common transport tests for whichever broker the environment names.

Copied beside Kombu's own as ``t/integration/test_peer.py`` for a run, as each of Kombu's transports
has such a file. ``PEER_BROKER`` is a broker that works, ``PEER_DEAD`` one that can't be reached,
``PEER_PRIORITY`` is ``asc`` where a higher number is more urgent, and ``PEER_OPTIONS`` has the transport
options as JSON.
"""

from __future__ import annotations

import json
import os

import kombu
import pytest

from .common import (
    BaseEventLoop,
    BaseExchangeTypes,
    BaseFailover,
    BaseMessage,
    BasePriority,
    BaseTimeToLive,
    BasicFunctionality,
)

BROKER, DEAD = os.environ["PEER_BROKER"], os.environ["PEER_DEAD"]
OPTIONS = json.loads(os.environ["PEER_OPTIONS"])


@pytest.fixture
def connection():
    return kombu.Connection(BROKER, transport_options=OPTIONS)


@pytest.fixture
def invalid_connection():
    return kombu.Connection(DEAD)


@pytest.fixture
def failover_connection():
    return kombu.Connection(f"{DEAD};{BROKER}", connect_timeout=10, transport_options=OPTIONS)


class test_Basic(BasicFunctionality):
    pass


class test_ExchangeTypes(BaseExchangeTypes):
    pass


class test_TimeToLive(BaseTimeToLive):
    pass


class test_Priority(BasePriority):
    PRIORITY_ORDER = os.environ["PEER_PRIORITY"]


class test_Message(BaseMessage):
    pass


class test_EventLoop(BaseEventLoop):
    pass


class test_Failover(BaseFailover):
    pass
