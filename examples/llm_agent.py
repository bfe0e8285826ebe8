"""An LLM agent whose model and tool calls are steps: after a crash no finished call is made again.

    python -m examples.llm_agent

`model()` stands for a real model; pass the key as idempotency key where the API takes one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

from celery import Celery

from examples.local import worker
from gwi_celery import Reliable, ReliableTask, setup

os.environ.setdefault("GWI_FOLDER", tempfile.mkdtemp(prefix="llm-agent-"))
app = Celery("agent")
setup(app)

#: What was called, in order: the bill.
bill: list[str] = []


class ModelOverloaded(Exception):
    """The model answers 529 now and then."""


overloaded = [False, False, True, False, False]


def model(messages: list[dict[str, str]], key: str) -> dict[str, Any]:
    """Looks a price up, converts it, then answers; its third call fails once."""
    if overloaded.pop(0):
        raise ModelOverloaded("try again in a moment")
    bill.append("model")
    results = [m["content"] for m in messages if m["role"] == "tool"]
    if not results:
        return {"tool": "price", "argument": "anvil"}
    if len(results) == 1:
        return {"tool": "in_euro", "argument": results[0]}
    return {"answer": f"An anvil costs {results[-1]} euro."}


def price(what: str) -> str:
    bill.append("price")
    return {"anvil": "120"}[what]


def in_euro(dollars: str) -> str:
    bill.append("in_euro")
    return f"{float(dollars) * 0.9:.0f}"


TOOLS: dict[str, Callable[[str], str]] = {"price": price, "in_euro": in_euro}


@app.task(
    base=ReliableTask,
    bind=True,
    autoretry_for=(ModelOverloaded,),
    max_retries=5,
    retry_backoff=False,
    default_retry_delay=0.1,
    reliable=Reliable(deadline=600),
)
def ask(self: Any, question: str, *, tenant_id: str, run_id: str) -> str:
    """Turns of model and tools. Going through the recorded turns again costs nothing."""
    messages = [{"role": "user", "content": question}]
    for turn in range(20):
        key = self.derive_key("model", turn)
        reply = self.step(f"model-{turn}", model, messages, key)
        if "answer" in reply:
            return str(reply["answer"])
        result = self.step(f"tool-{turn}", TOOLS[reply["tool"]], reply["argument"])
        messages.append({"role": "tool", "content": result})
    raise RuntimeError("no answer after 20 turns")


def main() -> None:
    call = {"tenant_id": "acme", "run_id": "chat-1"}
    with worker(app):
        answer = ask.delay("What does an anvil cost in euro?", **call).get(timeout=60)
        print(answer)
        again = ask.delay("What does an anvil cost in euro?", **call).get(timeout=60)
    assert answer == again == "An anvil costs 108 euro."
    assert bill == ["model", "price", "model", "in_euro", "model"], "each call is paid for once"


if __name__ == "__main__":
    main()
