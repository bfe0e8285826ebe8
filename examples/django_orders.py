"""Django: a job is sent when its transaction is committed, and not when it is rolled back.

Needs Django (`pip install django`). Run it:

    python -m examples.django_orders

Where DJANGO_SETTINGS_MODULE is set, `confirm.delay_on_commit(...)` is the same as `on_commit` below.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import django
from celery import Celery
from django.conf import settings
from django.db import connection, models, transaction

from examples.local import worker
from gwi_celery import ReliableTask, setup

FOLDER = Path(tempfile.mkdtemp(prefix="django-orders-"))
settings.configure(
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": FOLDER / "shop.sqlite3"}
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    CELERY_GWI_FOLDER=str(FOLDER / "gwi"),
    CELERY_GWI_LOCK_TTL=10,
)
django.setup()

app = Celery("orders")
app.config_from_object("django.conf:settings", namespace="CELERY")
setup(app)


class Order(models.Model):  # type: ignore[misc]
    customer = models.CharField(max_length=100)
    confirmed = models.BooleanField(default=False)

    class Meta:
        app_label = "orders"


#: Who got which e-mail; stands for a mail server that takes idempotency keys.
sent: dict[str, str] = {}


@app.task(base=ReliableTask, bind=True)
def confirm(self: Any, *, tenant_id: str, run_id: str, order: int) -> str:
    """Confirm an order. Its steps are recorded, so that a killed worker sends no second e-mail."""
    customer = self.step("read", lambda: Order.objects.get(pk=order).customer)
    self.step("mail", send_mail, customer, self.derive_key("mail"))
    self.step("mark", lambda: Order.objects.filter(pk=order).update(confirmed=True))
    return f"order {order} of {customer} is confirmed"


def send_mail(customer: str, key: str) -> None:
    sent.setdefault(key, customer)


def place(customer: str, *, fails: bool = False) -> Order:
    """What a view does: the job is sent with the commit, and only with it."""
    with transaction.atomic():
        order: Order = Order.objects.create(customer=customer)
        call = {"tenant_id": "shop", "run_id": f"order-{order.pk}", "order": order.pk}
        transaction.on_commit(lambda: confirm.delay(**call))
        if fails:
            raise ValueError("the card is refused")
    return order


def main() -> None:
    with connection.schema_editor() as editor:
        editor.create_model(Order)
    with worker(app):
        try:
            place("Bob", fails=True)
        except ValueError as exc:
            print(f"Bob's order is rolled back: {exc}")
        order = place("Ada")
        again = confirm.delay(tenant_id="shop", run_id=f"order-{order.pk}", order=order.pk)
        print(again.get(timeout=60))
    order.refresh_from_db()
    assert order.confirmed
    assert list(sent.values()) == ["Ada"], "Bob got no mail, and Ada one"


if __name__ == "__main__":
    main()
