"""Celery's results in Firestore: ``result_backend = "firestore://project/prefix?database=..."``.

==========================  =================================================================  ====
a result, first of its id   created, if none exists                                               1
a result of another state   over the version that this process wrote before                       1
                            else, after a RETRY, read, and written over the version read          2
                            else refused first, because there was one                             3
a ReliableTask's result     goes with the outcome, where the store is in the same place           0
a chord                     its group and its count in one commit; its size, once known           2
a chord's part              created, and counted in the same commit                               1
a chord's last part         then group, results (100 a read), and a mark that the body was sent   4
get, or a group's get       one read; then changes arrive by a stream that all share              1
==========================  =================================================================  ====

A write whose answer was lost is sent again; its nonce shows whether it was applied.
"""

from gwi_celery.backends.firestore.backend import FirestoreBackend

__all__ = ["FirestoreBackend"]
