"""Celery's results in Firestore: ``result_backend = "firestore://project/prefix?database=..."``.

==========================  =================================================================  ====
a result, first of its id   created: "not there" is all it asks for                               1
a result of another state   over the version that this process wrote before                       1
                            else, after a RETRY, read, and written over the version read          2
                            else refused first: there was one after all                           3
a ReliableTask's result     goes with the outcome, where the store is in the same place           0
a chord                     its group and its count in one commit, its size, once known           2
a chord's part              created, and counted in the same commit                               1
a chord's last part         then group, results (100 a read), and a mark that the body was sent   4
get, or a group's get       one read; then what changes comes by a stream that all share          1
==========================  =================================================================  ====

A write whose answer was lost is sent again, and found by its nonce if it was applied.
"""

from gwi_celery.backends.firestore.backend import FirestoreBackend

__all__ = ["FirestoreBackend"]
