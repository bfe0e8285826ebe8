"""Kombu's connection, where one of several URLs is ours."""

from __future__ import annotations

from typing import Any

import kombu
from kombu.transport import get_transport_cls

#: Transport option that says why an app's configuration can't be used. ``setup()`` puts it there when
#: it has nobody to raise to; connecting raises it.
REFUSED_OPTION = "gwi_refused"


class Connection(kombu.Connection):
    """In force for apps that were set up: after a failover, too, a URL is its transport's to read.

    Kombu leaves it whole only the first time. Later it takes the URL apart, gives options after ``?``
    to its own initialiser, which has no such arguments, and fills gaps from the URL before.
    """

    def switch(self, conn_str: str) -> None:
        scheme = conn_str.partition("://")[0]
        if "://" not in conn_str or not get_transport_cls(scheme).can_parse_url:
            super().switch(conn_str)
            return
        self.close()
        self.declared_entities.clear()
        self._closed = False
        # Gaps are not filled from the URL before.
        self.virtual_host, self.port = "", None
        empty: dict[str, Any] = dict.fromkeys(("userid", "password", "virtual_host", "port"))
        parts = {"hostname": conn_str, "transport": scheme}
        self._init_params(**{**self._initial_params, **empty, **parts})
