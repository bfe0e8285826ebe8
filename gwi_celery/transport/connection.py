"""A Kombu connection that may fail over to this package's URLs."""

from __future__ import annotations

from typing import Any

import kombu
from kombu.transport import get_transport_cls

#: Transport option that holds the error of an unusable configuration. ``setup()`` sets it where nobody
#: would get the error; connecting raises it.
REFUSED_OPTION = "gwi_refused"


class Connection(kombu.Connection):
    """The connection of apps that were set up: even after a failover a transport gets its whole URL.

    Kombu does so only for the first URL. After a failover it splits the URL, passes the options after
    ``?`` to its own initialiser, which has no such arguments, and fills gaps from the previous URL.
    """

    def switch(self, conn_str: str) -> None:
        scheme = conn_str.partition("://")[0]
        if "://" not in conn_str or not get_transport_cls(scheme).can_parse_url:
            super().switch(conn_str)
            return
        self.close()
        self.declared_entities.clear()
        self._closed = False
        # Don't fill gaps from the previous URL.
        self.virtual_host, self.port = "", None
        empty: dict[str, Any] = dict.fromkeys(("userid", "password", "virtual_host", "port"))
        parts = {"hostname": conn_str, "transport": scheme}
        self._init_params(**{**self._initial_params, **empty, **parts})
